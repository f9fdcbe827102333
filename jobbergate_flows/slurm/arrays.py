"""The task numbers of job arrays, as sbatch takes them and Slurm's commands print them."""

from __future__ import annotations

import re

MAX_TASKS = 100_000


def expand_tasks(text: str) -> tuple[int, ...]:
    """The task numbers of `0-3,7,9-11:2%4`, in ascending order, each once.

    Raises:
        ValueError: The text is none or is shortened ("..."), or names more than `MAX_TASKS` tasks.
    """
    tasks: set[int] = set()
    for part in text.split("%")[0].split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18})(?::([0-9]{1,18}))?)?", part)
        if match is None:
            raise ValueError(f"{text!r} names no array tasks")
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1) or 1)
        if len(tasks) + len(numbers) > MAX_TASKS:
            raise ValueError(f"{text!r} names more than {MAX_TASKS} array tasks")
        tasks.update(numbers)
    return tuple(sorted(tasks))
