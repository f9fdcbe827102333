"""What a flow's job writes beside its engine's log, which reaches the run by itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobbergate_flows.slurm.output import OutputLine

# As Prefect's console handler writes them.
_RECORD = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \| [A-Z]+ +\| ")
_TRACEBACK = "Traceback (most recent call last):"
_NEXT_TRACEBACK = ("During handling of the above exception", "The above exception was the direct cause")


class OwnOutput:
    """Leaves out the records of Prefect's log, and the tracebacks that follow one.

    Other lines of a record that has several are told twice: nothing tells them apart from what a program prints.
    """

    def __init__(self) -> None:
        self._before = ""

    def of(self, lines: Sequence[OutputLine]) -> list[OutputLine]:
        """Those of the next lines that the run does not have yet."""
        own = []
        for line in lines:
            self._before = _kind(line.text, self._before)
            if not self._before:
                own.append(line)
        return own


def _kind(text: str, before: str) -> str:
    """Whether a line is part of a record, and of which part; empty for one that is the program's own."""
    if _RECORD.match(text):
        return "record"
    if text == _TRACEBACK and before in ("record", "between"):
        return "traceback"
    if before == "traceback":
        # Its lines are indented; the first that is not names the exception.
        return "traceback" if text.startswith(" ") else "exception"
    if before in ("exception", "between") and (not text or text.startswith(_NEXT_TRACEBACK)):
        return "between"
    return ""
