"""Markdown for the Prefect UI, of words that users can choose. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from datetime import datetime


def code(content: str, language: str = "") -> str:
    """A block of code that its content cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"


def code_span(content: str) -> str:
    """A piece of code in a line, which its content cannot end."""
    content = " ".join(content.split())
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {content} {fence}" if longest else f"`{content}`"


def text(value: str) -> str:
    """One line of plain text: Slurm lets users put pipes, line breaks and markup into names."""
    value = " ".join(value.split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", value)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; every row is as long as the headers, empty cells at its end."""
    lines = [f"| {' | '.join(text(cell) for cell in headers)} |", f"|{'---|' * len(headers)}"]
    for row in rows:
        cells = [*row, *[""] * (len(headers) - len(row))][: len(headers)]
        lines.append(f"| {' | '.join(text(cell) for cell in cells)} |")
    return "\n".join(lines)


def details(title: str, content: str, *, open_: bool = False) -> str:
    """A block that can be folded."""
    summary = html.escape(" ".join(title.split()))
    return f"<details{' open' if open_ else ''}><summary>{summary}</summary>\n\n{content}\n\n</details>"


def time_of(moment: datetime | None) -> str:
    """A moment in this machine's zone, which is named; empty for None."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""
