"""Columns for stalled and lost jobs: since when, why, and whether their trainers send heartbeats."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "training_jobs",
        sa.Column(
            "quiet_since", sa.DateTime(timezone=True), comment="when a stalled or lost job was last heard of"
        ),
    )
    op.add_column("training_jobs", sa.Column("status_reason", sa.Text(), comment="why it is stalled or lost"))
    op.add_column(
        "training_jobs",
        sa.Column("watched_attempt", sa.Integer(), comment="the attempt of which heartbeats were heard"),
    )
    op.create_index(
        "training_jobs_watched_idx",
        "training_jobs",
        ["id"],
        unique=False,
        postgresql_where=sa.text("status IN ('running', 'stalled') AND watched_attempt = attempt"),
    )


def downgrade() -> None:
    op.drop_index("training_jobs_watched_idx", "training_jobs")
    for column in ("watched_attempt", "status_reason", "quiet_since"):
        op.drop_column("training_jobs", column)
