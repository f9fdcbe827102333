"""Asking an application's questions on a terminal."""

from __future__ import annotations

from typing import Any

import questionary

from jobbergate_flows.applications.application import Question


def ask(question: Question, complaint: str | None) -> Any:
    """Ask one question; the complaint about the answer before is shown first.

    Raises:
        KeyboardInterrupt: The person gave up.
    """
    if complaint:
        questionary.print(f"  {complaint}", style="fg:ansired")
    return _prompt(question).unsafe_ask()


def _prompt(question: Question) -> questionary.Question:
    default = question.default
    message = f"{question.message}{_range(question)}"
    match question.kind:
        case "Confirm" | "BooleanList":
            return questionary.confirm(message, default=bool(default))
        case "List":
            choices = [questionary.Choice(label, value) for label, value in question.choices]
            known = default in [value for _, value in question.choices]
            return questionary.select(message, choices=choices, default=default if known else None)
        case "Checkbox":
            ticked = default if isinstance(default, list) else []
            return questionary.checkbox(
                message,
                choices=[
                    questionary.Choice(label, value, checked=value in ticked) for label, value in question.choices
                ],
            )
        case "Directory":
            return questionary.path(message, default=str(default or ""), only_directories=True)
        case "File":
            return questionary.path(message, default=str(default or ""))
    return questionary.text(message, default="" if default is None else str(default))


def _range(question: Question) -> str:
    low, high = question.minimum, question.maximum
    if low is None and high is None:
        return ""
    return f" [{'' if low is None else low}..{'' if high is None else high}]"
