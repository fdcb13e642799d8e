"""When each source ended, so that trainers that ran at the same time as one rank can be found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

_BEGAN = "start of the process that created the run, by its clock"
_BEGAN_BEFORE = "start of the source that stated world_size, by its clock"


def upgrade() -> None:
    """Add the column, which is NULL for sources that ended earlier."""
    comment = "time of the completion that the source itself sent, by its clock"
    op.add_column("source_positions", sa.Column("ended_at", sa.DateTime(timezone=True), comment=comment))
    op.alter_column("source_positions", "began_at", comment=_BEGAN, existing_comment=_BEGAN_BEFORE)


def downgrade() -> None:
    """Drop it."""
    op.alter_column("source_positions", "began_at", comment=_BEGAN_BEFORE, existing_comment=_BEGAN)
    op.drop_column("source_positions", "ended_at")
