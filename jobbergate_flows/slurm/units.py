"""What sbatch's values amount to, so that they can be compared."""

from __future__ import annotations

import math
import re

_KIB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
_TIME = re.compile(
    r"(?P<minutes>[0-9]+)(:(?P<seconds>[0-9]+))?"
    r"|(?P<h>[0-9]+):(?P<m>[0-9]+):(?P<s>[0-9]+)"
    r"|(?P<days>[0-9]+)-(?P<dh>[0-9]+)(:(?P<dm>[0-9]+)(:(?P<ds>[0-9]+))?)?"
)


def memory_kib(text: str) -> float:
    """KiB of a value of `--mem` or `--mem-per-cpu`: `4G`, `512K`, or MB without a unit.

    `0` is all that the node has: infinite.

    Raises:
        ValueError: It is no such value.
    """
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)B?", text.upper())
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory, such as 4G")
    return int(match[1]) * _KIB[match[2] or "M"] or math.inf


def time_seconds(text: str) -> float:
    """Seconds of a value of `--time`: minutes, `m:s`, `h:m:s`, `d-h`, `d-h:m` or `d-h:m:s`.

    `UNLIMITED` and `INFINITE` are infinite, and so is zero, by which sbatch means no limit.

    Raises:
        ValueError: It is no such value.
    """
    if text in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time, such as 30, 1:30:00 or 2-00:00:00")
    found = {name: int(value or 0) for name, value in match.groupdict().items()}
    days, hours = found["days"], found["h"] + found["dh"]
    minutes = found["minutes"] + found["m"] + found["dm"]
    seconds = found["seconds"] + found["s"] + found["ds"]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf


def nodes_at_most(text: str) -> int:
    """The upper end of a value of `--nodes`: `2`, or `2-4`.

    Raises:
        ValueError: It is no such value.
    """
    match = re.fullmatch(r"[0-9]+(?:-([0-9]+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no number of nodes, such as 2 or 2-4")
    return int(match[1] or text)


def gpu_count(text: str) -> int:
    """The number in a value of `--gpus`: `2`, or `a100:2`.

    Raises:
        ValueError: It is no such value.
    """
    match = re.fullmatch(r"(?:[A-Za-z0-9_.-]+:)?([0-9]+)", text)
    if match is None:
        raise ValueError(f"{text!r} is no number of GPUs, such as 2 or a100:2")
    return int(match[1])
