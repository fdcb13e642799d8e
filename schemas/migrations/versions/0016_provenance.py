"""A column with the command, code and machine of each attempt."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column(
        "training_attempts",
        sa.Column("provenance", postgresql.JSONB(), comment="command, code and machine: docs/provenance.md"),
    )


def downgrade() -> None:
    op.drop_column("training_attempts", "provenance")
