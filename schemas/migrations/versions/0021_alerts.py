"""Tables for alerts: changes that alert rules may match, and the notifications made from them."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.create_table(
        "alert_occurrences",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="status, alert or dead_letters"),
        sa.Column(
            "value", sa.Text(), nullable=False, comment="the new status, the level of the alert, or the reason"
        ),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="alert_occurrences_pkey"),
        comment="Changes that alert rules have not seen yet; written with the change, removed with the alert.",
    )
    op.create_index("alert_occurrences_job_id_idx", "alert_occurrences", ["job_id"])
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column(
            "occurrence", sa.Text(), nullable=False, comment="what the rule has found, once for each destination"
        ),
        sa.Column(
            "state", sa.Text(), nullable=False, comment="waiting, sending, sent, failed, uncertain or suppressed"
        ),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True, comment="when it was sent or given up"),
        sa.PrimaryKeyConstraint("id", name="alerts_pkey"),
        sa.UniqueConstraint("rule", "destination", "occurrence", name="alerts_occurrence_key"),
        comment="Messages for people, one per rule, occurrence and destination: also the log of what was sent.",
    )
    op.create_index("alerts_job_id_idx", "alerts", ["job_id"])
    op.create_index("alerts_newest_idx", "alerts", ["created_at"])
    op.create_index(
        "alerts_unsent_idx",
        "alerts",
        ["destination", "id"],
        postgresql_where=sa.text("state IN ('waiting', 'sending')"),
    )


def downgrade() -> None:
    op.drop_table("alerts")
    op.drop_table("alert_occurrences")
    op.execute("DELETE FROM delivery_cursors WHERE sink = 'alerts'")
    op.execute("DELETE FROM sink_states WHERE starts_with(sink, 'alerts:')")
    # Otherwise another upgrade would not look at their new rows.
    op.execute(
        "UPDATE training_jobs SET settled = "
        "array_to_string(array_remove(string_to_array(settled, ','), 'alerts'), ',') "
        "WHERE 'alerts' = ANY(string_to_array(settled, ','))"
    )
