"""What the terminal shows: tables, JSON, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON does not have (times in ISO 8601, paths) as text."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns, never cut, so that they can be piped on."""
    cells = [[_cell(value) for value in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shortened(text: str, length: int = 40) -> str:
    """A text for a table, which it would otherwise make too wide."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one of each a line, without those that are empty."""
    for name, value in fields.items():
        if value not in (None, ""):
            print(f"{name.replace('_', ' '):<16} {_cell(value)}")


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on a terminal that something takes long; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def may_ask(no_input: bool) -> bool:
    """Whether a person is there to be asked."""
    return not no_input and sys.stdin.isatty() and sys.stderr.isatty()


def _plain(value: object) -> Any:
    match value:
        case Mapping():
            return dict(value)
        case datetime():
            return value.isoformat()
    return str(value)


def _cell(value: object) -> str:
    text = "-" if value is None or value == "" else str(value)
    # Job names may hold anything that Slurm took.
    return "".join(character if character.isprintable() else "?" for character in text)
