"""The form: an application's questions found by following its branches, as a JSON Schema."""

from __future__ import annotations

import copy
import string
import time
from typing import Any

from problem import Problem
from questions import Confirm, List, QuestionBase, _Choosing
from workflow import load, run

MAX_PATHS = 200
MAX_SECONDS = 5.0


class Seen:
    """A question as it was met on one path."""

    def __init__(self, question: QuestionBase, default: Any, before: dict[str, Any]) -> None:
        self.question, self.default, self.before = question, default, before


def explore(folder: str, config: dict[str, Any]) -> dict[str, Any]:
    """The form's JSON Schema, and whether every path was followed."""
    paths: list[tuple[dict[str, Any], dict[str, Seen]]] = []
    todo: list[dict[str, Any]] = [{}]
    queued = {_frozen({})}
    until = time.monotonic() + MAX_SECONDS
    problem: Problem | None = None
    while todo and len(paths) < MAX_PATHS and time.monotonic() < until:
        forced = todo.pop(0)
        seen: dict[str, Seen] = {}
        decided: dict[str, Any] = {}
        try:
            application = load(folder, copy.deepcopy(config))
            run(application, folder, _recorder(forced, seen, decided))
        except Problem as error:
            if not paths and not seen:
                raise
            problem = problem or error
        paths.append((decided, seen))
        prefix: dict[str, Any] = {}
        for name, value in decided.items():
            for other in _alternatives(seen[name].question):
                if other != value and name not in forced:
                    branch = {**forced, **{k: v for k, v in prefix.items()}, name: other}
                    if (key := _frozen(branch)) not in queued:
                        queued.add(key)
                        todo.append(branch)
            prefix[name] = value
    return {"form": _schema(paths), "complete": not todo and problem is None}


def _recorder(forced: dict[str, Any], seen: dict[str, Seen], decided: dict[str, Any]) -> Any:
    def answer(question: QuestionBase, known: dict[str, Any], default: Any) -> Any:
        name = question.variablename
        seen.setdefault(name, Seen(question, default, dict(decided)))
        value = forced.get(name, default)
        try:
            value = question.convert(value) if value is not None else question.placeholder()
        except ValueError:
            value = question.placeholder()
        if _alternatives(question):
            decided[name] = value
        return value

    return answer


def _alternatives(question: QuestionBase) -> list[Any]:
    if isinstance(question, List):
        return [value for _, value in question.options()]
    return [True, False] if isinstance(question, Confirm) else []


def _schema(paths: list[tuple[dict[str, Any], dict[str, Seen]]]) -> dict[str, Any]:
    order: list[str] = []
    for _, seen in paths:
        position = 0
        for name in seen:
            if name in order:
                position = order.index(name) + 1
            else:
                order.insert(position, name)
                position += 1
    properties: dict[str, Any] = {}
    required = []
    for position, name in enumerate(order):
        met = [seen[name] for _, seen in paths if name in seen]
        always = len(met) == len(paths)
        properties[name] = {**_property(met, None if always else _condition(name, paths)), "position": position}
        if always and "default" not in properties[name] and _has_no_default(met):
            required.append(name)
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, **({"required": required} if required else {})}


def _has_no_default(met: list[Seen]) -> bool:
    return all(seen.default is None and not callable(seen.question.ignore) for seen in met)


def _property(met: list[Seen], condition: str | None) -> dict[str, Any]:
    question = met[0].question
    merged: dict[str, Any] = question.schema()
    for other in met[1:]:
        merged = _merge(merged, other.question.schema())
    notes = []
    if condition:
        notes.append(condition)
    if isinstance(question, _Choosing) and (labels := question.labels()):
        notes.append(f"{labels}.")
    asks = (
        any(field for _, field, _, _ in string.Formatter().parse(question.message) if field)
        if _formats(question)
        else False
    )
    title = question.variablename.replace("_", " ").capitalize() if asks else question.message or question.variablename
    defaults = {repr(seen.default) for seen in met}
    entry = {"title": title, **merged}
    if callable(question.default) or len(defaults) > 1 or _depends(question.default):
        notes.append("Its default depends on other answers.")
    elif met[0].default is not None and _fits(question, met[0].default):
        entry["default"] = question.convert(met[0].default) if not getattr(question, "exists", None) else met[0].default
    if notes:
        entry["description"] = " ".join(notes)
    return entry


def _formats(question: QuestionBase) -> bool:
    try:
        list(string.Formatter().parse(question.message))
    except ValueError:
        return False
    return True


def _depends(default: Any) -> bool:
    if not isinstance(default, str):
        return False
    try:
        return any(field for _, field, _, _ in string.Formatter().parse(default) if field)
    except ValueError:
        return False


def _fits(question: QuestionBase, default: Any) -> bool:
    if getattr(question, "exists", None):
        return isinstance(default, str)
    try:
        question.convert(default)
    except ValueError:
        return False
    return True


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if one == other:
        return one
    if one.get("type") != other.get("type"):
        return {}
    merged = {"type": one["type"]} if "type" in one else {}
    if "enum" in one and "enum" in other:
        merged["enum"] = one["enum"] + [value for value in other["enum"] if value not in one["enum"]]
    if "items" in one and "items" in other:
        merged |= {"items": _merge(one["items"], other["items"]), "uniqueItems": True}
    for limit, widest in (("minimum", min), ("maximum", max)):
        if limit in one and limit in other:
            merged[limit] = widest(one[limit], other[limit])
    return merged


def _condition(name: str, paths: list[tuple[dict[str, Any], dict[str, Seen]]]) -> str | None:
    """When a question is asked: the last answer before it on which it depends."""
    before = next(seen[name].before for _, seen in paths if name in seen)
    for decider in reversed(list(before)):
        asked = {_text(decided[decider]) for decided, seen in paths if name in seen and decider in decided}
        not_asked = {_text(decided[decider]) for decided, seen in paths if name not in seen and decider in decided}
        if not_asked - asked:
            only = [value for value in asked if value not in not_asked] or sorted(asked)
            return f"Applies when {decider} is {' or '.join(sorted(only))}."
    return "Applies to some answers only."


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _frozen(branch: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, repr(value)) for name, value in branch.items())
