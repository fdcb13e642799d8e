"""A table of requests to stop a training, and columns for the steps of resumed attempts and forked jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

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
    step = "the step from which its attempt goes on"
    op.add_column("training_jobs", sa.Column("resume_step", sa.BigInteger(), comment=step))
    op.add_column("training_jobs", sa.Column("parent_id", sa.BigInteger(), comment="the job that it is a fork of"))
    last = "the last step that it has of its parent"
    op.add_column("training_jobs", sa.Column("fork_step", sa.BigInteger(), comment=last))
    is_fork = sa.text("parent_id IS NOT NULL")
    op.create_index("training_jobs_parent_idx", "training_jobs", ["parent_id"], postgresql_where=is_fork)
    goes_on = "the step from which it goes on"
    op.add_column("training_attempts", sa.Column("resume_step", sa.BigInteger(), comment=goes_on))
    op.create_index("stop_requests_open_idx", TABLE, ["job_id"], postgresql_where=sa.text("closed_at IS NULL"))


def downgrade() -> None:
    op.drop_column("training_attempts", "resume_step")
    op.drop_index("training_jobs_parent_idx", "training_jobs")
    for name in ("fork_step", "parent_id", "resume_step"):
        op.drop_column("training_jobs", name)
    op.drop_table(TABLE)
