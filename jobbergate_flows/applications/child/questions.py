"""The question types, as Jobbergate has them: `variablename, message, ignore=False, default=None`, and their options."""

from __future__ import annotations

import os
from typing import Any

from problem import Problem

_YES = {"true", "yes", "y", "on", "1"}
_NO = {"false", "no", "n", "off", "0"}


class QuestionBase:
    """A question.

    `ignore` and `default` may be functions of the answers so far; messages and defaults that are texts are formatted with
    them.
    """

    def __init__(self, variablename: str, message: str = "", ignore: Any = False, default: Any = None, **_rest: Any):
        self.variablename = variablename
        self.message = message
        self.ignore = ignore
        self.default = default

    def said(self, answers: dict[str, Any]) -> str:
        """The message for people."""
        return formatted(self.message, answers) or self.variablename

    def ignored(self, answers: dict[str, Any]) -> bool:
        """Whether the question is not asked."""
        return bool(self.ignore(answers) if callable(self.ignore) else self.ignore)

    def default_for(self, answers: dict[str, Any]) -> Any:
        """The default; None for none."""
        value = self.default(answers) if callable(self.default) else self.default
        return formatted(value, answers) if isinstance(value, str) else value

    def convert(self, value: Any) -> Any:
        """The answer as the application gets it. Raises ValueError with what is wrong."""
        return value

    def placeholder(self) -> Any:
        """An answer to go on with while the questions are explored."""
        return ""

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the answer."""
        return {"type": "string"}


class Text(QuestionBase):
    """A line of text."""

    def convert(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("is no text")
        return str(value)


class Integer(QuestionBase):
    """A whole number, between `minval` and `maxval`."""

    def __init__(self, variablename: str, message: str = "", minval: Any = None, maxval: Any = None, **rest: Any):
        super().__init__(variablename, message, **rest)
        self.minval, self.maxval = minval, maxval

    def convert(self, value: Any) -> int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError("is no whole number")
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError("is no whole number") from None
        if self.minval is not None and number < self.minval:
            raise ValueError(f"is less than the minimum of {self.minval}")
        if self.maxval is not None and number > self.maxval:
            raise ValueError(f"is more than the maximum of {self.maxval}")
        return number

    def placeholder(self) -> int:
        number = 0 if self.minval is None else int(self.minval)
        return number if self.maxval is None else min(number, int(self.maxval))

    def schema(self) -> dict[str, Any]:
        limits = {"minimum": self.minval, "maximum": self.maxval}
        return {"type": "integer", **{name: value for name, value in limits.items() if value is not None}}


class _Choosing(QuestionBase):
    def __init__(self, variablename: str, message: str = "", choices: Any = (), **rest: Any):
        super().__init__(variablename, message, **rest)
        self.choices = choices

    def options(self) -> list[tuple[str, Any]]:
        """Label and value of each choice."""
        choices = self.choices() if callable(self.choices) else self.choices
        return [
            (str(choice[0]), choice[1])
            if isinstance(choice, tuple | list) and len(choice) == 2
            else (str(choice), choice)
            for choice in choices
        ]

    def chosen(self, value: Any) -> Any:
        """The value of a choice given by its value or its label."""
        options = self.options()
        for _, option in options:
            if option == value and isinstance(option, bool) == isinstance(value, bool):
                return option
        for label, option in options:
            if label == str(value) or str(option) == str(value):
                return option
        raise ValueError(f"is none of {', '.join(str(option) for _, option in options)}")

    def labels(self) -> str:
        """`value: label` of the choices whose labels differ from their values."""
        told = [f"{option}: {label}" for label, option in self.options() if label != str(option)]
        return "; ".join(told)


class List(_Choosing):
    """One of several choices."""

    def convert(self, value: Any) -> Any:
        return self.chosen(value)

    def placeholder(self) -> Any:
        options = self.options()
        return options[0][1] if options else None

    def schema(self) -> dict[str, Any]:
        values = [option for _, option in self.options()]
        kinds = {_json_type(value) for value in values}
        return {"enum": values, **({"type": kinds.pop()} if len(kinds) == 1 else {})}


class Checkbox(_Choosing):
    """Any of several choices."""

    def convert(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError("is no list")
        return [self.chosen(entry) for entry in value]

    def placeholder(self) -> list[Any]:
        return []

    def schema(self) -> dict[str, Any]:
        values = [option for _, option in self.options()]
        kinds = {_json_type(value) for value in values}
        items = {"enum": values, **({"type": kinds.pop()} if len(kinds) == 1 else {})}
        return {"type": "array", "items": items, "uniqueItems": True}


class _Path(QuestionBase):
    kind = "path"

    def __init__(self, variablename: str, message: str = "", exists: Any = None, **rest: Any):
        super().__init__(variablename, message, **rest)
        self.exists = exists

    def there(self, path: str) -> bool:
        raise NotImplementedError

    def convert(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("is no path")
        if self.exists and not self.there(os.path.expanduser(value)):
            raise ValueError(f"is no {self.kind} that exists here")
        return value


class Directory(_Path):
    """A directory; with `exists`, one that is there."""

    kind = "directory"

    def there(self, path: str) -> bool:
        return os.path.isdir(path)


class File(_Path):
    """A file; with `exists`, one that is there."""

    kind = "file"

    def there(self, path: str) -> bool:
        return os.path.isfile(path)


class Confirm(QuestionBase):
    """Yes or no."""

    def convert(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _YES:
            return True
        if word in _NO:
            return False
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
        message: str = "",
        default: Any = None,
        ignore: Any = False,
        whentrue: Any = None,
        whenfalse: Any = None,
        **rest: Any,
    ):
        super().__init__(variablename, message, ignore=ignore, default=default, **rest)
        self.whentrue, self.whenfalse = list(whentrue or ()), list(whenfalse or ())

    def children(self, answer: bool) -> list[QuestionBase]:
        """The questions that follow this answer."""
        return self.whentrue if answer else self.whenfalse


class Const(QuestionBase):
    """A value that is never asked for."""

    def __init__(self, variablename: str, *args: Any, **rest: Any):
        super().__init__(variablename, **({"default": args[-1], **rest} if args else rest))
        self.message = self.message or variablename


def formatted(text: Any, answers: dict[str, Any]) -> str:
    """A text with the answers filled in; as it is where they do not fit."""
    try:
        return str(text).format(**answers)
    except (KeyError, IndexError, ValueError, AttributeError):
        return str(text)


def describe(question: QuestionBase, answers: dict[str, Any], default: Any) -> dict[str, Any]:
    """A question for whoever asks it."""
    return {
        "type": type(question).__name__,
        "variable": question.variablename,
        "message": question.said(answers),
        "default": default,
        "choices": question.options() if isinstance(question, _Choosing) else None,
        "minimum": getattr(question, "minval", None),
        "maximum": getattr(question, "maxval", None),
    }


def check(question: Any) -> QuestionBase:
    """A question, or the error that it is none."""
    if not isinstance(question, QuestionBase):
        raise Problem("LoadingError", f"{question!r} is no question", "jobbergate.py", "return a list of questions")
    return question


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {int: "integer", float: "number", str: "string"}.get(type(value), "object")
