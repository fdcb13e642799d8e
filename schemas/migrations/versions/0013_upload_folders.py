"""Columns for two times: start of a checkpoint's deletion, and last search for a job's unrecorded uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column(
        "training_checkpoints",
        sa.Column(
            "deletion_began_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="from then on the object may be incomplete",
        ),
    )
    op.add_column(
        "training_jobs",
        sa.Column(
            "files_swept_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when unrecorded uploads were looked for",
        ),
    )


def downgrade() -> None:
    op.drop_column("training_jobs", "files_swept_at")
    op.drop_column("training_checkpoints", "deletion_began_at")
