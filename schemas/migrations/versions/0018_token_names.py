"""A column that restricts a trainer's access token to jobs with certain names."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column(
        "gateway_tokens",
        sa.Column(
            "job_names", sa.Text(), comment="a name, or the beginning of names with a *: a trainer's only jobs"
        ),
    )


def downgrade() -> None:
    op.drop_column("gateway_tokens", "job_names")
