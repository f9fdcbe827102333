"""The task numbers of job arrays, as sbatch takes them and Slurm's commands print them."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_TASKS = 100_000
MAX_TASK_NUMBER = 4_000_000
"""The largest number that any Slurm takes: its MaxArraySize, which ends before it, is at most 4,000,001."""

ARRAY_PATTERN = r"[0-9]+(-[0-9]+(:[0-9]+)?)?(,[0-9]+(-[0-9]+(:[0-9]+)?)?)*(%[0-9]{1,7})?"
"""The form of an array specification; `parse_array` says whether its numbers make sense."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What `--array` asks for: ranges of task numbers, and how many tasks may run at once (None: no limit)."""

    ranges: tuple[range, ...]
    at_once: int | None = None

    @property
    def largest(self) -> int:
        """The largest task number."""
        return max(numbers[-1] for numbers in self.ranges)

    def tasks(self) -> tuple[int, ...]:
        """All task numbers in ascending order, each once: Slurm takes `1,1` for `1`.

        Raises:
            ValueError: They are more than `MAX_TASKS`.
        """
        numbers: set[int] = set()
        for part in self.ranges:
            if len(numbers) + len(part) > MAX_TASKS:
                raise ValueError(f"more than {MAX_TASKS} array tasks")
            numbers.update(part)
        return tuple(sorted(numbers))


def parse_array(text: str) -> ArraySpec:
    """Read a specification such as `0-3,7,9-11:2%4`. As for Slurm, `%0` is no limit.

    Raises:
        ValueError: It is none, a range is empty, a step is 0, or a number is beyond what any Slurm takes.
    """
    # Digits are bounded before they become numbers.
    if len(text) > 100_000 or not re.fullmatch(ARRAY_PATTERN, text):
        raise ValueError(f"{text[:60]!r} names no array tasks: write them as 0-9, 1,3,5 or 0-9:2%4")
    parts, _, at_once = text.partition("%")
    return ArraySpec(tuple(_numbers(part) for part in parts.split(",")), int(at_once or 0) or None)


def expand_tasks(text: str) -> tuple[int, ...]:
    """The task numbers of `0-3,7,9-11:2%4`, in ascending order, each once.

    Raises:
        ValueError: The text is none or is shortened ("..."), or names more than `MAX_TASKS` tasks.
    """
    return parse_array(text).tasks()


def _numbers(part: str) -> range:
    numbers = [_bounded(number, part) for number in re.split("[-:]", part)]
    first = numbers[0]
    last = numbers[1] if len(numbers) > 1 else first
    step = numbers[2] if len(numbers) > 2 else 1
    if last < first:
        raise ValueError(f"{part!r} names no array tasks: write the smaller number first")
    if step == 0:
        raise ValueError(f"{part!r} names no array tasks: the step is at least 1")
    return range(first, last + 1, step)


def _bounded(digits: str, part: str) -> int:
    number = int(digits) if len(digits) <= 20 else MAX_TASK_NUMBER + 1
    if number > MAX_TASK_NUMBER:
        raise ValueError(f"{part[:60]!r} names no array tasks: no Slurm takes a number above {MAX_TASK_NUMBER}")
    return number
