"""The form: an application's questions, found by following its branches, as one JSON Schema."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobbergate_flows.applications.child import interview
from jobbergate_flows.applications.child.questions import Confirm, List, QuestionBase, _Choosing
from jobbergate_flows.applications.errors import ApplicationError

MAX_PATHS = 200
MAX_SECONDS = 5.0

_SOMETIMES = "Applies to some answers only."


def describe(program: interview.Program) -> tuple[dict[str, Any], bool, list[str]]:
    """The form, whether every path was followed to its end, and what is wrong with the questions themselves.

    The form's `properties` are in the order in which they are asked (`position`). A question that some paths do
    not ask is optional and says when it applies. A form that is not complete allows further answers.

    Raises:
        ApplicationError: The application fails before its first question.
    """
    paths, complete = explore(program)
    return form(paths, complete), complete, faults(paths)


@dataclass
class Path:
    """One way through the questions.

    `met` are the questions asked on it; `ignored` those that a function of the answers had ignored; `order` the names
    of both in order; `decisions` what was answered to those at which ways part; `before` how many decisions had been
    made when a question was met. `whole` says whether it was followed to its end.
    """

    decisions: dict[str, Any] = field(default_factory=dict)
    met: dict[str, QuestionBase] = field(default_factory=dict)
    ignored: dict[str, QuestionBase] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    whole: bool = True


def explore(program: interview.Program) -> tuple[list[Path], bool]:
    """Ways through the questions: that of the defaults, then those that part from a known way at one decision.

    So the ways with few other decisions come first, within `MAX_PATHS` and `MAX_SECONDS`.

    Returns:
        The paths, and whether they are all and were all followed to their end.
    """
    paths: list[Path] = []
    todo: list[dict[str, Any]] = [{}]
    known = {_frozen({})}
    until = time.monotonic() + MAX_SECONDS
    while todo and len(paths) < MAX_PATHS and time.monotonic() < until:
        forced = todo.pop(0)
        walker = _Walker(forced)
        try:
            interview.run(program, walker)
        except ApplicationError:
            if not paths and not walker.path.met:
                raise
            # The rest of this path needs better answers than made-up ones.
            walker.path.whole = False
        paths.append(walker.path)
        for branch in _partings(walker.path, forced):
            if (key := _frozen(branch)) not in known:
                known.add(key)
                todo.append(branch)
    return paths, not todo and all(path.whole for path in paths)


def form(paths: Sequence[Path], complete: bool) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the answers, as the paths show them."""
    properties: dict[str, Any] = {}
    required = []
    for position, name in enumerate(_order(paths)):
        met = [path.met[name] for path in paths if name in path.met]
        if not met:
            # Asked after answers that are not followed, such as a number's.
            ignored = [path.ignored[name] for path in paths if name in path.ignored]
            properties[name] = {**_property(ignored, _SOMETIMES), "position": position}
            continue
        always = all(name in path.met for path in paths if path.whole) if any(path.whole for path in paths) else True
        condition = None if always else _condition(name, paths)
        properties[name] = {**_property(met, condition), "position": position}
        if always and all(question.default is None and not callable(question.unresolved.ignore) for question in met):
            required.append(name)
    schema = {"type": "object", "properties": properties, "additionalProperties": not complete}
    return {**schema, "required": required} if required else schema


def faults(paths: Sequence[Path]) -> list[str]:
    """Questions that nobody can answer, and defaults that are no answers, as far as that does not depend on answers."""
    found: dict[str, None] = {}
    for name, question in (met for path in paths for met in path.met.items()):
        limits = question.schema()
        lowest, highest = limits.get("minimum"), limits.get("maximum")
        if lowest is not None and highest is not None and lowest > highest:
            found[f"{name}: its minimum of {lowest} is more than its maximum of {highest}"] = None
            continue
        if question.default is None or _depends(question.unresolved.default):
            continue
        try:
            question.convert(question.default)
        except ValueError as error:
            found[f"{name}: {question.default!r:.100}, its default, {error}"] = None
    return list(found)


class _Walker(interview.Answerer):
    """Answers as forced, else with the defaults, else with something that fits."""

    def __init__(self, forced: dict[str, Any]) -> None:
        self.path = Path()
        self._forced = forced

    def answer(self, question: QuestionBase) -> Any:
        name = question.variablename
        if name not in self.path.met:
            self.path.met[name] = question
            self.path.order.append(name)
            self.path.before[name] = len(self.path.decisions)
        value = self._forced.get(name, question.default)
        try:
            value = question.placeholder() if value is None else question.convert(value)
        except ValueError:
            value = question.placeholder()
        if _choices(question):
            self.path.decisions[name] = value
        return value

    def ignored(self, question: QuestionBase) -> Any:
        name = question.variablename
        if callable(question.unresolved.ignore) and name not in self.path.ignored:
            self.path.ignored[name] = question
            self.path.order.append(name)
        return question.converted_default()


def _choices(question: QuestionBase) -> list[Any]:
    if isinstance(question, List):
        return [value for _, value in question.options]
    return [True, False] if isinstance(question, Confirm) else []


def _partings(path: Path, forced: dict[str, Any]) -> Iterator[dict[str, Any]]:
    before: dict[str, Any] = {}
    for name, value in path.decisions.items():
        if name not in forced:
            for other in _choices(path.met[name]):
                if other != value:
                    yield {**forced, **before, name: other}
        before[name] = value


def _order(paths: Sequence[Path]) -> list[str]:
    order: list[str] = []
    for path in paths:
        position = 0
        for name in path.order:
            if name in order:
                position = order.index(name) + 1
            else:
                order.insert(position, name)
                position += 1
    return order


def _property(met: Sequence[QuestionBase], condition: str | None) -> dict[str, Any]:
    first = met[0]
    schema = first.schema()
    for other in met[1:]:
        schema = _merged(schema, other.schema())
    notes = [condition] if condition else []
    if range_ := _range(schema):
        notes.append(range_)
    if any(_depends(question.unresolved.default) for question in met) or len({repr(q.default) for q in met}) > 1:
        notes.append("Its default depends on other answers.")
    elif first.default is not None and _is_answer(first, first.default):
        schema = {**schema, "default": first.convert(first.default)}
    # Prefect's forms show descriptions as Markdown, and make one line of two that no empty one parts.
    described = "\n\n".join([" ".join(notes)] * bool(notes) + [f"- {label}" for label in _labels(met)])
    return {"title": _title(first), **({"description": described} if described else {}), **schema}


def _title(question: QuestionBase) -> str:
    """The message; for what depends on other answers, without the answers that were made up here."""
    message = question.unresolved.message
    if not _depends(message):
        return str(question.message)
    if callable(message):
        return question.variablename
    parts = string.Formatter().parse(message)
    return "".join(text + (f"<{name}>" if name else "") for text, name, _, _ in parts)


def _range(schema: dict[str, Any]) -> str:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is not None and highest is not None:
        return f"From {lowest} to {highest}."
    if lowest is not None:
        return f"At least {lowest}."
    return "" if highest is None else f"At most {highest}."


def _labels(met: Sequence[QuestionBase]) -> list[str]:
    options = [option for question in met if isinstance(question, _Choosing) for option in question.options]
    told = [f"{value}: {label}" for label, value in options if label != str(value)]
    return [re.sub(r"([\\`*<\[])", r"\\\1", text) for text in dict.fromkeys(told)]


def _depends(text: Any) -> bool:
    if callable(text):
        return True
    if not isinstance(text, str):
        return False
    try:
        return any(name for _, name, _, _ in string.Formatter().parse(text))
    except ValueError:
        return False


def _is_answer(question: QuestionBase, value: Any) -> bool:
    try:
        question.convert(value)
    except ValueError:
        return False
    return True


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What allows an answer that either allows."""
    if one == other:
        return one
    merged: dict[str, Any] = {}
    if "type" in one and one["type"] == other.get("type"):
        merged["type"] = one["type"]
    if "enum" in one and "enum" in other:
        merged["enum"] = one["enum"] + [value for value in other["enum"] if value not in one["enum"]]
    if merged.get("type") == "array":
        merged |= {"items": _merged(one["items"], other["items"]), "uniqueItems": True}
    for limit, wider in (("minimum", min), ("maximum", max)):
        if limit in one and limit in other:
            merged[limit] = wider(one[limit], other[limit])
    return merged


def _condition(name: str, paths: Sequence[Path]) -> str:
    """When a question is asked, by the nearest decision before it that says so."""
    first = next(path for path in paths if name in path.met)
    for decision in reversed(list(first.decisions)[: first.before[name]]):
        ways = [path for path in paths if decision in path.decisions and (path.whole or name in path.met)]
        asked = {_told(path.decisions[decision]): None for path in ways if name in path.met}
        left = {_told(path.decisions[decision]): None for path in ways if name not in path.met}
        if left and not asked.keys() & left.keys():
            title = _title(first.met[decision])
            if len(left) < len(asked):
                return f'Applies unless "{title}" is {" or ".join(left)}.'
            return f'Applies when "{title}" is {" or ".join(asked)}.'
    return _SOMETIMES


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _frozen(branch: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, repr(value)) for name, value in branch.items())
