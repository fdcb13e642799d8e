"""Columns with the last `seq` of a job that retention has removed."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for name in ("removed_log_seq", "removed_metric_seq"):
        column = sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        op.add_column("training_jobs", column)


def downgrade() -> None:
    for name in ("removed_metric_seq", "removed_log_seq"):
        op.drop_column("training_jobs", name)
