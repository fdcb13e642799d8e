"""A table of attempts with their MLflow runs, and columns for the verification of checkpoint files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_NEW_COLUMNS: dict[str, list[sa.Column[object]]] = {
    "training_jobs": [
        sa.Column(
            "best_checkpoint_at",
            sa.DateTime(timezone=True),
            comment="when the trainer saved it: never moves back",
        ),
        sa.Column(
            "last_checkpoint_at",
            sa.DateTime(timezone=True),
            comment="when the trainer saved it: never moves back",
        ),
    ],
    "training_checkpoints": [
        sa.Column(
            "store_checksum",
            sa.Text(),
            comment="what the object store says of the object: S3's ChecksumSHA256",
        ),
        sa.Column("upload_error", sa.Text(), comment="why uri is still a path on the trainer's machine"),
        sa.Column("verify_error", sa.Text(), comment="what the last look at the object found wrong"),
        sa.Column("verify_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("verify_after", sa.DateTime(timezone=True)),
        sa.Column("deleted_at", sa.DateTime(timezone=True), comment="when retention removed the object"),
    ],
}


def upgrade() -> None:
    op.create_table(
        "training_attempts",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("params", postgresql.JSONB(), nullable=True),
        sa.Column("tags", postgresql.JSONB(), nullable=True),
        sa.Column(
            "mlflow_run_id",
            sa.Text(),
            nullable=True,
            comment="the run that the trainer itself logs to, where it said so",
        ),
        sa.Column("mirror_run_id", sa.Text(), nullable=True, comment="the run that workers made and log to"),
        sa.Column("changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "mirrored_changes",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="what MLflow has",
        ),
        sa.Column("mirror_notes", postgresql.JSONB(), nullable=True, comment="what was adapted to MLflow's rules"),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("training_attempts_pkey")),
        comment="What each attempt of a job was and how it ended; training_jobs has the newest.",
    )
    op.create_index(
        "training_attempts_unmirrored_idx",
        "training_attempts",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("changes > mirrored_changes"),
    )
    for table, columns in _NEW_COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    op.create_index(
        "training_checkpoints_unverified_idx",
        "training_checkpoints",
        ["verify_after"],
        postgresql_where=sa.text(
            "verified_at IS NULL AND deleted_at IS NULL AND starts_with(uri, 's3://') "
            "AND (verify_attempts = 0 OR verify_after IS NOT NULL)"
        ),
    )
    # What is known of jobs from before: their newest attempt.
    op.execute(
        "INSERT INTO training_attempts (job_id, attempt, name, status, started_at, completed_at, exit_code, "
        "error_message, params, tags, mlflow_run_id, changes) SELECT id, attempt, name, status, started_at, "
        "completed_at, exit_code, error_message, params, tags, mlflow_run_id, 1 FROM training_jobs"
    )


def downgrade() -> None:
    op.drop_index("training_checkpoints_unverified_idx", "training_checkpoints")
    for table, columns in _NEW_COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name)
    op.drop_table("training_attempts")
