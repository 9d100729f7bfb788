"""Where orderings are kept: tables, migrations, and the store that the use cases speak to."""
