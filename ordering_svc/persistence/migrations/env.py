"""How alembic reaches the database: over the connection that the service hands it."""

from __future__ import annotations

from alembic import context

from ordering_svc.persistence.tables import Tables

context.configure(connection=context.config.attributes["connection"], target_metadata=Tables.metadata)
with context.begin_transaction():
    context.run_migrations()
