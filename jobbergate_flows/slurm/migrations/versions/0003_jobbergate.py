"""Which submissions are job submissions in Jobbergate too, and what it was not told yet."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "jobbergate_links",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("api", sa.String(255), nullable=False),
        sa.Column("submission_id", sa.Integer),
        sa.Column("job_script_id", sa.Integer),
        sa.Column("flow_run_id", sa.String(36)),
        sa.Column("key", sa.String(32)),
        sa.Column("bridged", sa.Boolean, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("shown", sa.Boolean, nullable=False),
        sa.Column("trouble", sa.Text),
        sa.Column("newest", sa.Text),
        sa.Column("made_at", _TIME, nullable=False),
        sa.UniqueConstraint("api", "submission_id"),
        sa.UniqueConstraint("api", "key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobbergate_links_flow_run_id", "jobbergate_links", ["flow_run_id"])
    op.create_index("ix_jobbergate_links_key", "jobbergate_links", ["key"])
    op.create_index("jobbergate_links_open", "jobbergate_links", ["closed", "api"])
    op.create_table(
        "jobbergate_messages",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("link", sa.Integer, sa.ForeignKey("jobbergate_links.id"), nullable=False),
        sa.Column("state", sa.String(32)),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobbergate_messages_link", "jobbergate_messages", ["link"])
