"""The question types, with Jobbergate's names and arguments."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from typing import Any, Self

_YES = {"true", "yes", "y", "on", "1"}
_NO = {"false", "no", "n", "off", "0"}


class QuestionBase:
    """A question.

    Args:
        variablename: What the answer is called in templates.
        message: What people are asked.
        ignore: Whether it is not asked, or a function of the answers so far.
        default: The answer of who gives none, or a function of the answers so far; None for none.

    Messages and defaults that are texts are formatted with the answers so far.
    """

    def __init__(self, variablename: str, message: Any = "", ignore: Any = False, default: Any = None) -> None:
        self.variablename = variablename
        self.message = message
        self.ignore = ignore
        self.default = default
        self.unresolved: QuestionBase = self

    def resolved(self, answers: dict[str, Any]) -> Self:
        """This question as it is after these answers: nothing in it is a function or to be formatted any more."""
        question = copy.copy(self)
        question.message = str(_solved(self.message, answers)) or self.variablename
        question.ignore = bool(_solved(self.ignore, answers))
        question.default = _solved(self.default, answers)
        question.unresolved = self
        return question

    def converted_default(self) -> Any:
        """The default as an answer; as it is where it would be none."""
        try:
            return self.default if self.default is None else self.convert(self.default)
        except ValueError:
            return self.default

    def convert(self, value: Any) -> Any:
        """The answer as the application gets it. Raises ValueError with what is wrong, as the end of a sentence."""
        return value

    def verify(self, answer: Any) -> None:
        """Raise ValueError where a converted answer does not hold on this machine, or is more than one line."""

    def placeholder(self) -> Any:
        """An answer to go on with while the questions are explored."""
        return "1"

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the answer."""
        return {"type": "string"}

    def described(self) -> dict[str, Any]:
        """The question for whoever asks it."""
        return {
            "kind": type(self).__name__,
            "variable": self.variablename,
            "message": self.message,
            "default": self.converted_default(),
        }


class _Line(QuestionBase):
    def convert(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("is no text")
        return str(value)

    def verify(self, answer: str) -> None:
        # It goes into a script, where a second line would be a command of its own.
        if re.search(r"[\n\r\0]", answer):
            raise ValueError("is more than one line")


class Text(_Line):
    """A line of text."""


class Integer(QuestionBase):
    """A whole number from `minval` to `maxval`; None for no such limit."""

    def __init__(
        self, variablename: str, message: Any = "", minval: Any = None, maxval: Any = None, **rest: Any
    ) -> None:
        super().__init__(variablename, message, **rest)
        self.minval, self.maxval = minval, maxval

    def convert(self, value: Any) -> int:
        number = _whole(value)
        if number is None:
            raise ValueError("is no whole number")
        if self.minval is not None and number < self.minval:
            raise ValueError(f"is less than the minimum of {self.minval}")
        if self.maxval is not None and number > self.maxval:
            raise ValueError(f"is more than the maximum of {self.maxval}")
        return number

    def placeholder(self) -> int:
        number = max(1, self.minval) if self.minval is not None else 1
        return int(number if self.maxval is None else min(number, self.maxval))

    def schema(self) -> dict[str, Any]:
        limits = {"minimum": self.minval, "maximum": self.maxval}
        return {"type": "integer", **{name: value for name, value in limits.items() if value is not None}}

    def described(self) -> dict[str, Any]:
        return {**super().described(), "minimum": self.minval, "maximum": self.maxval}


class _Choosing(QuestionBase):
    def __init__(self, variablename: str, message: Any = "", choices: Any = (), **rest: Any) -> None:
        super().__init__(variablename, message, **rest)
        self.choices = choices

    def resolved(self, answers: dict[str, Any]) -> Self:
        question = super().resolved(answers)
        question.choices = [_option(choice) for choice in _solved(self.choices, answers)]
        return question

    @property
    def options(self) -> Sequence[tuple[str, Any]]:
        """Label and value of each choice of a resolved question."""
        return self.choices  # type: ignore[no-any-return]

    def chosen(self, value: Any) -> Any:
        """The value of a choice that is given by its value, its text, or its label."""
        for _, option in self.options:
            if option == value and isinstance(option, bool) == isinstance(value, bool):
                return option
        for _, option in self.options:
            if str(option) == str(value):
                return option
        for label, option in self.options:
            if label == value:
                return option
        raise ValueError(f"is none of {', '.join(str(option) for _, option in self.options) or 'no choices'}")

    def choice_schema(self) -> dict[str, Any]:
        """The JSON Schema of one choice."""
        values = [option for _, option in self.options]
        kinds = {_json_type(value) for value in values}
        return {"enum": values, **({"type": kinds.pop()} if len(kinds) == 1 else {})}

    def described(self) -> dict[str, Any]:
        return {**super().described(), "choices": self.options}


class List(_Choosing):
    """One of several choices; a choice may be `(label, value)`."""

    def convert(self, value: Any) -> Any:
        return self.chosen(value)

    def placeholder(self) -> Any:
        return self.options[0][1] if self.options else ""

    def schema(self) -> dict[str, Any]:
        return self.choice_schema()


class Checkbox(_Choosing):
    """Any of several choices; a choice may be `(label, value)`. The answer is a list."""

    def convert(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            whole = value in (text for label, option in self.options for text in (label, str(option)))
            value = [value] if whole else [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError("is no list")
        answer: list[Any] = []
        for entry in value:
            try:
                option = self.chosen(entry)
            except ValueError as error:
                raise ValueError(f"holds {entry!r}, which {error}") from error
            if option not in answer:
                answer.append(option)
        return answer

    def placeholder(self) -> list[Any]:
        return [option for _, option in self.options[:1]]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.choice_schema(), "uniqueItems": True}


class _Path(_Line):
    kind = ""

    def __init__(self, variablename: str, message: Any = "", exists: bool | None = None, **rest: Any) -> None:
        super().__init__(variablename, message, **rest)
        self.exists = exists

    def is_kind(self, path: str) -> bool:
        raise NotImplementedError

    def convert(self, value: Any) -> str:
        if not isinstance(value, str | os.PathLike):
            raise ValueError("is no path")
        return str(value)

    def verify(self, answer: str) -> None:
        super().verify(answer)
        path = os.path.expanduser(answer)
        there = os.path.lexists(path)
        if there and self.exists is False:
            raise ValueError("exists already")
        if (there or self.exists) and not self.is_kind(path):
            raise ValueError(f"is no {self.kind}" if there else f"is no {self.kind} that exists on this machine")


class Directory(_Path):
    """A directory. `exists`: True for one that is there, False for one that is not, None for either."""

    kind = "directory"

    def is_kind(self, path: str) -> bool:
        return os.path.isdir(path)

    def placeholder(self) -> str:
        return "."


class File(_Path):
    """A file. `exists`: True for one that is there, False for one that is not, None for either."""

    kind = "file"

    def is_kind(self, path: str) -> bool:
        return os.path.isfile(path)

    def placeholder(self) -> str:
        return "README.md"


class Confirm(QuestionBase):
    """Yes or no."""

    def convert(self, value: Any) -> bool:
        word = str(value).strip().lower()
        if isinstance(value, bool | int | str) and word in _YES | _NO:
            return word in _YES
        raise ValueError("is neither yes nor no")

    def placeholder(self) -> bool:
        return False

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class BooleanList(Confirm):
    """Yes or no, with further questions for either."""

    def __init__(
        self,
        variablename: str,
        message: Any = "",
        default: Any = None,
        ignore: Any = False,
        whentrue: Sequence[QuestionBase] | None = None,
        whenfalse: Sequence[QuestionBase] | None = None,
    ) -> None:
        super().__init__(variablename, message, ignore=ignore, default=default)
        self.whentrue, self.whenfalse = list(whentrue or ()), list(whenfalse or ())


class Const(QuestionBase):
    """A value that is never asked for: its default."""

    def __init__(self, variablename: str, default: Any = None, **rest: Any) -> None:
        super().__init__(variablename, default=default, **rest)


def _solved(value: Any, answers: dict[str, Any]) -> Any:
    if callable(value):
        return value(answers)
    if not isinstance(value, str):
        return value
    try:
        return value.format(**answers)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        # Braces that are not meant for it, as in a default `${HOME}`.
        return value


def _option(choice: Any) -> tuple[str, Any]:
    if isinstance(choice, tuple | list) and len(choice) == 2:
        return str(choice[0]), choice[1]
    return str(choice), choice


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,1000}\s*", value) else None
    return value if isinstance(value, int) else None


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array", tuple: "array", type(None): "null"}
    return names.get(type(value), "object")
