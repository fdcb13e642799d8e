"""Columns for the metrics exporter: rows and bytes received, durations, and missing messages."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for name in ("rows_in", "bytes_in"):
        column = sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        op.add_column("ingest_cursors", column)
    counts: sa.Column[list[int]] = sa.Column(
        "drain_counts",
        ARRAY(sa.BigInteger()),
        server_default=sa.text("'{0,0,0,0,0,0,0,0}'"),
        nullable=False,
        comment="transactions by their time: workers/durations.py",
    )
    op.add_column("ingest_cursors", counts)
    seconds: sa.Column[float] = sa.Column(
        "drain_seconds", sa.Double(), server_default=sa.text("0"), nullable=False
    )
    op.add_column("ingest_cursors", seconds)
    op.create_table(
        "delivery_times",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column(
            "counts",
            ARRAY(sa.BigInteger()),
            nullable=False,
            comment="work orders by their time: workers/durations.py",
        ),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sink", name=op.f("delivery_times_pkey")),
        comment="How long work orders to deliver took.",
    )
    op.create_index(
        "source_positions_missing_idx",
        "source_positions",
        ["kind"],
        unique=False,
        postgresql_where=sa.text("missing <> '[]' OR produced > last_seq"),
    )


def downgrade() -> None:
    op.drop_index("source_positions_missing_idx", "source_positions")
    op.drop_table("delivery_times")
    for column in ("drain_seconds", "drain_counts", "bytes_in", "rows_in"):
        op.drop_column("ingest_cursors", column)
