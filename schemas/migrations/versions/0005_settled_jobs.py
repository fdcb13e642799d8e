"""A flag for jobs whose rows are in all sinks, and an index that excludes them from the search for deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_KINDS = ("logs", "metrics")


def upgrade() -> None:
    for kind in _KINDS:
        op.add_column(
            "training_jobs",
            sa.Column(
                f"{kind}_settled",
                sa.Boolean(),
                server_default=sa.text("false"),
                nullable=False,
                comment="its sink has all of these rows, and the job is quiet",
            ),
        )
        op.create_index(
            f"training_jobs_{kind}_unsettled_idx",
            "training_jobs",
            ["id"],
            unique=False,
            postgresql_where=sa.text(f"NOT {kind}_settled"),
        )


def downgrade() -> None:
    for kind in _KINDS:
        op.drop_index(f"training_jobs_{kind}_unsettled_idx", "training_jobs")
        op.drop_column("training_jobs", f"{kind}_settled")
