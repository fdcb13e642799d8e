"""Requests of users to stop a training."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0020"

TABLE = "stop_requests"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("job_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("requested_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("published_at", TIME, comment="when workers first wrote it to Redis for trainers"),
        sa.Column("closed_at", TIME),
        comment="Requests of users to stop an attempt: docs/stop.md.",
    )
    op.create_index("stop_requests_open_idx", TABLE, ["job_id"], postgresql_where=sa.text("closed_at IS NULL"))


def downgrade() -> None:
    op.drop_table(TABLE)
