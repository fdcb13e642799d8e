"""Alembic's environment script: runs the migrations on the connection of the caller."""

from alembic import context

from trainwire.schemas.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    # Serializes migrations of processes that start at the same time; released at the end of the transaction.
    context.execute("SELECT pg_advisory_xact_lock(7283915060)")
    context.run_migrations()
