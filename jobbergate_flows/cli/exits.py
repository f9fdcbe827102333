"""Exit codes, and how an error is told."""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum

from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.jobbergate.errors import JobbergateRequestError, JobbergateResponseError, ProviderUnreachable
from jobbergate_flows.metrics.errors import MetricsUnreachable
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    LedgerUnreachable,
    SubmissionAmbiguous,
    SubmissionCancelled,
    SubmissionHeld,
    SubmissionRefused,
)


class Exit(IntEnum):
    """The exit codes; the package's docstring says what they mean."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_INPUT = 3
    UNREACHABLE = 4
    INTERNAL = 70
    INTERRUPTED = 130


class UsageError(JobbergateFlowsError):
    """Options that do not go together, or a value that an option cannot have."""


class BadInput(JobbergateFlowsError):
    """A file or value that cannot be used."""


class ServerUnreachable(JobbergateFlowsError):
    """The Prefect server does not answer."""


def report(error: Exception, *, debug: bool = False) -> Exit:
    """Tell an error on standard error, in one line and a hint, and return the exit code for it."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, JobbergateFlowsError):
        where = f"{error.where}: " if error.where else ""
        say(f"Error: {_one_line(where + error.message)}")
        hint = error.hint
    elif isinstance(error, OSError) and error.strerror:
        say(f"Error: {error.filename}: {error.strerror}" if error.filename else f"Error: {error.strerror}")
        hint = None
    else:
        say(f"Error: {_one_line(f'{type(error).__name__}: {error}')}")
        hint = None if debug else "`jobbergate-flows --debug ...` shows where it comes from"
    if hint:
        say(f"Hint: {_one_line(hint)}")
    return _code(error)


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return " ".join(line for line in map(str.strip, text.splitlines()) if line)


def _code(error: Exception) -> Exit:
    match error:
        case UsageError():
            return Exit.USAGE
        case ClusterUnreachable() | ServerUnreachable() | LedgerUnreachable() | SubmissionAmbiguous():
            return Exit.UNREACHABLE
        case MetricsUnreachable() | ProviderUnreachable() | JobbergateRequestError():
            return Exit.UNREACHABLE
        case JobbergateResponseError(status=status) if status >= 500:
            return Exit.UNREACHABLE
        case SubmissionRefused() | SubmissionHeld() | SubmissionCancelled():
            return Exit.FAILED
        case JobbergateFlowsError() | OSError():
            return Exit.BAD_INPUT
        case _:
            return Exit.INTERNAL
