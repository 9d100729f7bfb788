"""The schema, step by step; alembic runs what is missing at every start."""
