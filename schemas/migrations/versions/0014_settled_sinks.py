"""A column with the names of the sinks that have all rows of a job, and one for state that a sink's code keeps.

Older versions still use `logs_settled`, `metrics_settled` and `newest_ns`; a trigger resets the new column when
they reset theirs. The next release can drop these columns and the trigger.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"


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
    # A drain or a replay of an older version, during a rolling upgrade, resets the columns that it knows.
    op.execute(
        "CREATE FUNCTION trainwire_unsettle() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.settled := ''''; RETURN NEW; END'"
    )
    op.execute(
        "CREATE TRIGGER training_jobs_unsettle BEFORE UPDATE OF logs_settled ON training_jobs FOR EACH ROW "
        "WHEN (OLD.settled <> '' AND NOT NEW.logs_settled) EXECUTE FUNCTION trainwire_unsettle()"
    )
    op.add_column(
        "delivery_cursors",
        sa.Column(
            "state",
            postgresql.JSONB(),
            server_default="{}",
            nullable=False,
            comment="what the sink itself needs to go on",
        ),
    )
    op.execute("UPDATE delivery_cursors SET state = newest_ns WHERE newest_ns <> '{}'")


def downgrade() -> None:
    op.drop_column("delivery_cursors", "state")
    op.execute("DROP TRIGGER training_jobs_unsettle ON training_jobs")
    op.execute("DROP FUNCTION trainwire_unsettle")
    op.drop_index("training_jobs_settled_id_idx", "training_jobs")
    op.drop_column("training_jobs", "settled")
