"""Which sinks have all rows of a job, by the name of the sink; and a state in the cursor that any sink may use."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0012"

_SINK_OF = {"logs": "loki", "metrics": "mlflow"}


def upgrade() -> None:
    op.add_column(
        "training_jobs",
        sa.Column(
            "settled",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="sorted names of the sinks that have all rows of the job, with commas; '' after each drain",
        ),
    )
    op.execute(
        "UPDATE training_jobs SET settled = concat_ws(',', CASE WHEN logs_settled THEN 'loki' END, "
        "CASE WHEN metrics_settled THEN 'mlflow' END) WHERE logs_settled OR metrics_settled"
    )
    op.create_index("training_jobs_settled_id_idx", "training_jobs", ["settled", "id"])
    for kind in _SINK_OF:
        op.drop_index(f"training_jobs_{kind}_unsettled_idx", "training_jobs")
        op.drop_column("training_jobs", f"{kind}_settled")
    op.alter_column(
        "delivery_cursors",
        "newest_ns",
        new_column_name="state",
        comment="what the sink itself needs to go on",
        existing_comment="log_type -> newest time sent",
    )


def downgrade() -> None:
    op.alter_column(
        "delivery_cursors",
        "state",
        new_column_name="newest_ns",
        comment="log_type -> newest time sent",
        existing_comment="what the sink itself needs to go on",
    )
    for kind, sink in _SINK_OF.items():
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
        op.execute(
            f"UPDATE training_jobs SET {kind}_settled = true "  # noqa: S608 - our own names
            f"WHERE '{sink}' = ANY(string_to_array(settled, ','))"
        )
        op.create_index(
            f"training_jobs_{kind}_unsettled_idx",
            "training_jobs",
            ["id"],
            unique=False,
            postgresql_where=sa.text(f"NOT {kind}_settled"),
        )
    op.drop_index("training_jobs_settled_id_idx", "training_jobs")
    op.drop_column("training_jobs", "settled")
