"""A column with the ranges of message numbers that a trainer has declared lost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column(
        "source_positions",
        sa.Column(
            "lost",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="[]",
            nullable=False,
            comment="[[first, last, reason], ...]: gone",
        ),
    )
    op.create_index(
        "source_positions_lost_idx", "source_positions", ["kind"], postgresql_where=sa.text("lost <> '[]'")
    )


def downgrade() -> None:
    op.drop_index("source_positions_lost_idx", "source_positions")
    op.drop_column("source_positions", "lost")
