"""A table of tombstones of deleted jobs, which also counts their discarded messages."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("job_created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("deleted_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "parts",
            postgresql.JSONB(),
            nullable=False,
            comment="what is deleted, kept or left of each store",
        ),
        sa.Column("discarded_messages", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("discarded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="null while workers have something to delete",
        ),
        sa.PrimaryKeyConstraint("job_id", name="deleted_jobs_pkey"),
        comment="Tombstones: messages of these jobs are acknowledged and not stored.",
    )
    op.create_index(
        "deleted_jobs_unfinished_idx",
        "deleted_jobs",
        ["next_attempt_at"],
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.add_column(
        "ingest_cursors",
        sa.Column("discarded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("ingest_cursors", "discarded")
    op.drop_table("deleted_jobs")
