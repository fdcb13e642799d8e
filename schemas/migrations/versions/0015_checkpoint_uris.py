"""An index of checkpoints by URI, which retention uses."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute(
        'CREATE INDEX training_checkpoints_uri_idx ON training_checkpoints ("left"((uri COLLATE "C"), 500))'
    )


def downgrade() -> None:
    op.drop_index("training_checkpoints_uri_idx", "training_checkpoints")
