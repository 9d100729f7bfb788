#!/usr/bin/env bash
# A throw-away PostgreSQL for tests. `tests/postgresql.sh COMMAND...` starts one in a temporary folder, on a Unix socket
# only, with fsync on; runs the command with LORAMUX_TEST_POSTGRESQL_URL set; stops and removes it, and ends as the
# command did. PostgreSQL refuses to run as root, so root becomes the user `postgres` for it.
set -euo pipefail

programs=$(find /usr/lib/postgresql/*/bin /usr/local/pgsql/bin -maxdepth 0 2>/dev/null | sort -V | tail -1 || true)
if [[ -z $programs ]]; then
  programs=$(dirname "$(command -v initdb)") || { echo "tests/postgresql.sh: no initdb: install postgresql" >&2; exit 2; }
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/loramux-postgresql.XXXXXX")
as_owner() { "$@"; }
if [[ $(id -u) == 0 ]]; then
  chown postgres "$folder"
  as_owner() { (cd "$folder" && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); }
fi

stop() {
  as_owner "$programs/pg_ctl" -D "$folder/data" -m immediate -w stop >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_owner "$programs/initdb" -D "$folder/data" -U loramux --auth=trust --encoding=UTF8 --locale=C.UTF-8 >/dev/null
as_owner "$programs/pg_ctl" -D "$folder/data" -l "$folder/log" -w start \
  -o "-c listen_addresses='' -c unix_socket_directories='$folder' -c fsync=on -c max_connections=200" >/dev/null
chmod 755 "$folder"

LORAMUX_TEST_POSTGRESQL_URL="postgresql://loramux@/postgres?host=$folder" "$@"
