"""The table of submissions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "submissions",
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("scope", sa.String(128), nullable=False),
        sa.Column("call", sa.String(255), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("cluster", sa.String(128), nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("job_name", sa.Text, nullable=False),
        sa.Column("script_digest", sa.String(80), nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("intent_at", _TIME, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("flow_run_id", sa.String(36)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("array", sa.Boolean, nullable=False),
        sa.Column("requeue", sa.Boolean, nullable=False),
        sa.Column("standard_output", sa.Text),
        sa.Column("standard_error", sa.Text),
        sa.Column("job_id", sa.String(32)),
        sa.Column("submitted_at", _TIME),
        sa.Column("final_at", _TIME),
        sa.Column("final_state", sa.String(32)),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("told", sa.Boolean, nullable=False),
        sa.Column("accounted", sa.Boolean, nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("secret_path", sa.Text),
        sa.Column("written_files", sa.JSON, nullable=False),
        sa.Column("output_offsets", sa.JSON, nullable=False),
        sa.UniqueConstraint("scope", "call", "attempt"),
    )
    op.create_index("ix_submissions_flow_run_id", "submissions", ["flow_run_id"])
    op.create_index("submissions_status", "submissions", ["cluster", "status"])
    op.create_index("submissions_job", "submissions", ["cluster", "job_id"])
