"""What every error of this package has: what is wrong, where, and how to mend it."""

from __future__ import annotations


class JobbergateFlowsError(Exception):
    """The base of all errors raised on purpose.

    Args:
        message: What is wrong, in one line.
        where: The place, for example ``jobbergate.yaml:12``; None when there is none.
        hint: How to mend it, in one line; None when the message says it already.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default pickling; errors travel between processes.
        return _rebuild, (type(self), self.__dict__.copy(), self.args)


def _rebuild(kind: type[JobbergateFlowsError], state: dict[str, object], args: tuple[str, ...]) -> object:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error
