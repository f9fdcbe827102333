"""An error on its way to the parent."""

from __future__ import annotations


class Problem(Exception):
    """`kind` names one of the parent's error classes."""

    def __init__(self, kind: str, message: str, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.where, self.hint = kind, message, where, hint
