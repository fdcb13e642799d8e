"""Tables for deliveries: the cursor of each job in each sink, and the state of each sink."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "delivery_cursors",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("confirmed_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "newest_ns",
            postgresql.JSONB(),
            server_default="{}",
            nullable=False,
            comment="log_type -> newest time sent",
        ),
        sa.Column("dead_lettered", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("sink", "job_id", name=op.f("delivery_cursors_pkey")),
        comment="How far a sink has confirmed a job's rows. The rows themselves are the only copy of the payload.",
    )
    op.create_table(
        "sink_states",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("down_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_probe_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("sink", name=op.f("sink_states_pkey")),
        comment="Whether a sink answers: while it does not, one probe at a time is sent, however many jobs wait.",
    )


def downgrade() -> None:
    for table in ("sink_states", "delivery_cursors"):
        op.drop_table(table)
