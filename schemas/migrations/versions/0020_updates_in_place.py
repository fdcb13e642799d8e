"""Makes updates of jobs and positions heap-only (HOT): they stay in their page and add no index entries.

Each message updates the row of its job and the position of its source. Postgres keeps an update in its page if the
page has room, and if no column of an index or of an index predicate has changed.
"""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.execute("ALTER TABLE training_jobs SET (fillfactor = 50)")
    op.execute("ALTER TABLE source_positions SET (fillfactor = 50)")
    op.drop_index("source_positions_missing_idx", "source_positions")
    # This writes the table anew, with room in all pages.
    op.execute(
        "ALTER TABLE source_positions ADD COLUMN is_behind boolean "
        "GENERATED ALWAYS AS (missing <> '[]' OR coalesce(produced > last_seq, false)) STORED"
    )
    op.execute("COMMENT ON COLUMN source_positions.is_behind IS 'whether messages are missing'")
    op.execute("CREATE INDEX source_positions_behind_idx ON source_positions (kind) WHERE is_behind")


def downgrade() -> None:
    op.drop_column("source_positions", "is_behind")
    op.execute(
        "CREATE INDEX source_positions_missing_idx ON source_positions (kind) "
        "WHERE missing <> '[]' OR produced > last_seq"
    )
    op.execute("ALTER TABLE source_positions RESET (fillfactor)")
    op.execute("ALTER TABLE training_jobs RESET (fillfactor)")
