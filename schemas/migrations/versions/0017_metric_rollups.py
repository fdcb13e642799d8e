"""Tables with the points of each metric, and their minima and maxima at several resolutions.

Workers fill them from the existing rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "metric_series",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("series", sa.Integer(), autoincrement=False, nullable=False, comment="1, 2, 3 ... per job"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "series", name="metric_series_pkey"),
        comment="The metrics of each attempt and rank: one series each.",
    )
    op.execute('CREATE INDEX metric_series_name_idx ON metric_series (job_id, "left"((name COLLATE "C"), 500))')
    op.create_table(
        "metric_blocks",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("series", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "level", sa.SmallInteger(), autoincrement=False, nullable=False, comment="0: every point; -1: newest"
        ),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("bounds", sa.LargeBinary(), nullable=False),
        sa.Column("points", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "series", "level", "number", name="metric_blocks_pkey"),
        comment="Points of metrics by series, and their extremes at several resolutions, for charts.",
    )
    # The points are compressed already.
    op.execute("ALTER TABLE metric_blocks ALTER COLUMN points SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("metric_blocks")
    op.drop_table("metric_series")
    op.execute("DELETE FROM delivery_cursors WHERE sink = 'rollups'")
    # Otherwise another upgrade would not build them again.
    op.execute(
        "UPDATE training_jobs SET settled = "
        "array_to_string(array_remove(string_to_array(settled, ','), 'rollups'), ',') "
        "WHERE 'rollups' = ANY(string_to_array(settled, ','))"
    )
