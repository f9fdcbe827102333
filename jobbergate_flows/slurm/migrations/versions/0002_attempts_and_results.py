"""Why an attempt was followed by another, and which files of a job are its results."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("submissions") as table:
        table.add_column(sa.Column("asked", sa.JSON))
        table.add_column(sa.Column("retries", sa.JSON))
        table.add_column(sa.Column("retried", sa.Boolean, nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("ending", sa.JSON))
        table.add_column(sa.Column("result_files", sa.JSON, nullable=False, server_default="[]"))
