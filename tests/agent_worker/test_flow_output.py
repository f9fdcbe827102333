"""Of a flow's output the run's logs get what they do not have from the flow's engine."""

from __future__ import annotations

import pytest

from agent_worker.flow_output import OwnOutput
from jobbergate_flows.slurm.output import OutputLine

RECORD = "15:40:20.300 | INFO    | Flow run 'smooth-hare' - Beginning flow run"
ERROR = "15:40:27.872 | ERROR   | Flow run 'smooth-hare' - Encountered exception during execution: ValueError('x')"
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "work.py", line 3, in work',
    "    raise ValueError",
    "ValueError: x",
]
CAUSED = ["", "The above exception was the direct cause of the following exception:", "", *TRACEBACK]


def own(*texts: str) -> list[str]:
    return [line.text for line in OwnOutput().of([OutputLine(text, "stdout") for text in texts])]


def test_the_engines_records_are_left_out() -> None:
    assert own(RECORD, "printed", RECORD, "  printed further in", "", RECORD) == ["printed", "  printed further in", ""]


@pytest.mark.parametrize("tail", [[], CAUSED, [*CAUSED, *CAUSED]], ids=["one", "caused", "twice caused"])
def test_with_their_tracebacks(tail: list[str]) -> None:
    assert own("before", ERROR, *TRACEBACK, *tail, RECORD, "after") == ["before", "after"]
    assert own(ERROR, *TRACEBACK, *tail, "after") == ["after"]


def test_a_traceback_of_the_programs_own_is_its_own() -> None:
    assert own("said", *TRACEBACK, RECORD) == ["said", *TRACEBACK]


def test_what_looks_like_a_record_within_a_line_is_none() -> None:
    assert own(f"I read {RECORD}", "15:40 | INFO | short") == [f"I read {RECORD}", "15:40 | INFO | short"]


def test_a_record_may_be_cut_by_two_looks() -> None:
    lines = [OutputLine(text, "stdout") for text in (ERROR, *TRACEBACK, "after")]
    output = OwnOutput()
    assert [line.text for cut in lines for line in output.of([cut])] == ["after"]
