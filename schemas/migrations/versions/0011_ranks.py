"""Columns with the rank of a source, and with the number of ranks of its attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("source_positions", sa.Column("rank", sa.Integer(), nullable=True))
    op.add_column(
        "source_positions",
        sa.Column(
            "world_size",
            sa.Integer(),
            nullable=True,
            comment="number of ranks of the attempt, as the source stated it",
        ),
    )
    op.add_column(
        "source_positions",
        sa.Column("is_launcher", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.add_column(
        "source_positions",
        sa.Column(
            "began_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="start of the source that stated world_size, by its clock",
        ),
    )


def downgrade() -> None:
    for name in ("began_at", "is_launcher", "world_size", "rank"):
        op.drop_column("source_positions", name)
