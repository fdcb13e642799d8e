"""A table of the gateway's access tokens, and an index for its list of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "gateway_tokens",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True, comment="the only job that a trainer may speak for"),
        sa.Column("hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the token, which is kept nowhere"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'trainer', 'admin')", name=op.f("gateway_tokens_role_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("gateway_tokens_pkey")),
        sa.UniqueConstraint("hash", name="gateway_tokens_hash_key"),
        comment="Who may use the gateway, and for what.",
    )
    op.create_index("training_jobs_newest_idx", "training_jobs", ["created_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("training_jobs_newest_idx", "training_jobs")
    op.drop_table("gateway_tokens")
