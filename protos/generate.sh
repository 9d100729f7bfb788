#!/usr/bin/env bash
# Writes the Python code of the contracts beside them. usage: protos/generate.sh [OUT]   (OUT: protos/)
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
python=${PYTHON:-python3}
ours=$(find loramux -name '*.proto' | sort)
# The protoc plugin stands beside the interpreter that runs this.
PATH="$(dirname "$(command -v "$python")"):$PATH"
"$python" -m grpc_tools.protoc -I . --python_out="$out" --mypy_out=quiet:"$out" buf/validate/validate.proto $ours
"$python" -m grpc_tools.protoc -I . --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
  $(grep -l '^service ' $ours)
