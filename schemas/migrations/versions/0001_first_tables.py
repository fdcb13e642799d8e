"""The first tables: jobs, their rows, cursors of streams, positions of sources, and dead letters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column(
            "raw",
            sa.LargeBinary(),
            nullable=False,
            comment="msgpack map of the entry's flat fields, as they came",
        ),
        sa.Column("raw_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pkey")),
        sa.UniqueConstraint("stream", "entry_id", "raw_sha256", name="dead_letters_entry_key"),
        comment="Entries that can never be stored, each with its raw bytes and the reason.",
    )
    op.create_index(op.f("dead_letters_job_id_idx"), "dead_letters", ["job_id"], unique=False)
    op.create_table(
        "ingest_cursors",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("last_id", sa.Text(), server_default="0-0", nullable=False),
        sa.Column("entries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("stream", name=op.f("ingest_cursors_pkey")),
        comment="The row lock is the lease on the stream; last_id is the newest entry that is committed.",
    )
    op.create_table(
        "source_positions",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "missing",
            postgresql.JSONB(),
            server_default="[]",
            nullable=False,
            comment="[[first, last], ...] below last_seq",
        ),
        sa.Column("dead_lettered", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "produced",
            sa.BigInteger(),
            nullable=True,
            comment="last seq the source says it made; null until its completion",
        ),
        sa.Column(
            "dropped",
            sa.BigInteger(),
            nullable=True,
            comment="messages the source says it gave up; null until its completion",
        ),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "source", "kind", name=op.f("source_positions_pkey")),
    )
    op.create_table(
        "training_checkpoints",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("logged_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("is_best", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(), nullable=True),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("training_checkpoints_pkey")),
    )
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("current_epoch", sa.BigInteger(), nullable=True),
        sa.Column("total_epochs", sa.BigInteger(), nullable=True),
        sa.Column("progress_percent", sa.Double(), nullable=True),
        sa.Column("final_accuracy", sa.Double(), nullable=True),
        sa.Column("final_metrics", postgresql.JSONB(), nullable=True),
        sa.Column("best_metrics", postgresql.JSONB(), nullable=True),
        sa.Column("best_epoch", sa.BigInteger(), nullable=True),
        sa.Column("best_checkpoint_path", sa.Text(), nullable=True),
        sa.Column("last_checkpoint_path", sa.Text(), nullable=True),
        sa.Column("mlflow_run_id", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("params", postgresql.JSONB(), nullable=True),
        sa.Column("tags", postgresql.JSONB(), nullable=True),
        sa.Column("last_log_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_metric_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_checkpoint_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("training_jobs_pkey")),
        comment="One row per training job; created by its first message.",
    )
    op.create_table(
        "training_logs",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("logged_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column(
            "logged_ns",
            sa.SmallInteger(),
            nullable=False,
            comment="nanoseconds below logged_at's microsecond",
        ),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("log_type", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("training_logs_pkey")),
    )
    op.create_table(
        "training_metrics",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("logged_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("checkpoint_path", sa.Text(), nullable=True),
        sa.Column(
            "extra_metrics",
            postgresql.JSONB(),
            nullable=True,
            comment="NaN and infinities are the strings of docs/wire-format.md",
        ),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("training_metrics_pkey")),
    )


def downgrade() -> None:
    for table in [
        "training_jobs",
        "training_logs",
        "training_metrics",
        "training_checkpoints",
        "ingest_cursors",
        "source_positions",
        "dead_letters",
    ]:
        op.drop_table(table)
