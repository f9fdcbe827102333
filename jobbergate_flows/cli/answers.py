"""Answers given on the command line and in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobbergate_flows.cli.exits import BadInput, UsageError


def read_answers(file: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The answers of a JSON or YAML file, with `k=v` pairs over them.

    Args:
        file: Its path, `-` for standard input, None for none.
        pairs: `name=value`. A value that begins with `[` is a JSON list (for a Checkbox); all others are text, which a
            question turns into what it wants.

    Raises:
        BadInput: The file is missing or no mapping; the message names the line.
        UsageError: A pair without `=`.
    """
    answers = _from_file(file) if file is not None else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--answer {pair!r} is no name=value", hint="for example --answer steps=10")
        answers[name.strip()] = _value(name.strip(), value)
    return answers


def _value(name: str, text: str) -> Any:
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--answer {name}: {text!r} begins like a list and is none: {error}",
            hint=f"""for example --answer '{name}=["a", "b"]'""",
        ) from error


def _from_file(file: str) -> dict[str, Any]:
    from jobbergate_flows.reading import read_yaml

    if not file:
        raise UsageError("--answers is empty", hint="name a file, or - for standard input")
    where = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the answers cannot be read: {error.strerror}", where=where, hint="name a file") from error
    except UnicodeDecodeError as error:
        raise BadInput("the answers are no UTF-8 text", where=where, hint="save them as UTF-8") from error
    documents = read_yaml(text, where=where, refused=BadInput, unique_keys=True)
    if not documents:
        return {}
    [content, *others] = documents
    if others or not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(
            "the answers are no mapping of names to values",
            where=where,
            hint="write one `name: value` a line",
        )
    return content
