"""Alembic's environment: the connection comes from the ledger that is being opened."""

from alembic import context

connection = context.config.attributes["connection"]
# A process that dies on the way leaves all or nothing, in SQLite too.
context.configure(connection=connection, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
