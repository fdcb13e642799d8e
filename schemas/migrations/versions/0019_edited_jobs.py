"""Columns for the name, tags and note that people give to a job, and for archiving."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"

TABLE = "training_jobs"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("given_name", sa.Text(), comment="name given by a person; replaces `name`"))
    comment = "tags given by a person, merged with `tags`; a null removes the trainer's tag"
    op.add_column(TABLE, sa.Column("given_tags", postgresql.JSONB(), comment=comment))
    op.add_column(TABLE, sa.Column("note", sa.Text()))
    op.add_column(
        TABLE, sa.Column("archived_at", sa.DateTime(timezone=True), comment="hidden in lists since then")
    )


def downgrade() -> None:
    for name in ("archived_at", "note", "given_tags", "given_name"):
        op.drop_column(TABLE, name)
