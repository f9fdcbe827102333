"""Recorded answers of Slurm's commands."""

from __future__ import annotations

import json
from pathlib import Path

from jobbergate_flows.slurm.commands import CommandResult


def recorded(name: str, version: str = "22.05") -> CommandResult:
    """What a command answered."""
    record = json.loads((Path(__file__).parent / version / f"{name}.json").read_text())
    return CommandResult(record["stdout"], record["stderr"], record["returncode"])
