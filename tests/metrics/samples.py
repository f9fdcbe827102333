"""Samples as Slurm writes them, and as pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from jobbergate_flows.metrics.model import Piece, Series

START = 1_790_000_000
SINCE = datetime.fromtimestamp(START, UTC)
UNTIL = SINCE + timedelta(hours=1)


def line(
    name: str, value: float, time: int, *, job: int = 7, step: str = "0", task: str = "0", host: str = "n1"
) -> str:
    """One point of Slurm's usual schema, as its plugin prints it; `time` in seconds after `START`."""
    return f"{name},job={job},step={step},task={task},host={host} value={value:g} {START + time}"


def grouped(
    fields: str, time: int, *, job: int = 7, step: str = "0", task: str = "0", host: str = "n1", tags: str = ""
) -> str:
    """One point as Slurm 26.05 prints it with `grouped_fields`; `tags` are more of them."""
    more = f",{tags}" if tags else ""
    return f"task,host={host},job={job},step={step},task={task}{more} {fields} {START + time}"


def piece(
    columns: Mapping[str, Sequence[float]],
    times: Sequence[int],
    *,
    job: str = "7",
    host: str = "n1",
    step: str = "0",
    task: str = "0",
) -> Piece:
    """A task's samples; `times` in seconds after `START`."""
    return Piece(
        Series(job, host, step, task),
        np.array(times, dtype=np.int64) + START,
        tuple(columns),
        np.array(list(columns.values()), dtype=np.float64),
    )
