"""A column with the time of a job's next delivery, after its deliveries failed although the sink responds."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column(
        "delivery_cursors",
        sa.Column(
            "next_attempt_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="of a job that may fail alone: until then the others go before it",
        ),
    )


def downgrade() -> None:
    op.drop_column("delivery_cursors", "next_attempt_at")
