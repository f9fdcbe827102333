"""Runs to decide about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agent_worker.identity.facts import Creator, RunFacts

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DIGEST = f"sha256:{'a' * 64}"
OTHER_DIGEST = f"sha256:{'b' * 64}"
DEPLOYMENT = "0191d2a4-7f6b-7c3e-8a41-5d2c9e0f1b2a"
NAME = "parameter-study/nightly"
ALICE = Creator("7f9f0000-0000-4000-8000-00000000a11c", "USER", "alice@example.org")


def a_run(**changed: Any) -> RunFacts:
    """A run of an application; of an ordinary flow with `kind="flow"`."""
    values: dict[str, Any] = {
        "flow_run_id": "0191d2a4-0000-7000-8000-000000000001",
        "deployment_id": DEPLOYMENT,
        "deployment_name": NAME,
        "application": None if changed.get("kind") == "flow" else DIGEST,
        "answers": {"steps": 10, "name": "first"},
        "resources": {"nodes": "2", "time_limit": "30"},
        "directory": "~/runs",
        "job_name": "",
        "work_pool": "slurm",
        "work_queue": "default",
    }
    return RunFacts(**{**values, **changed})
