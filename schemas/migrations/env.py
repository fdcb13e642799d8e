"""How Alembic runs our migrations: on the connection that the caller gives, never on one of its own."""

from alembic import context

from trainwire.schemas.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    # One migration at a time, however many processes start at once; released with the transaction.
    context.execute("SELECT pg_advisory_xact_lock(7283915060)")
    context.run_migrations()
