"""The ways in which reading and drawing metrics goes wrong."""

from __future__ import annotations

from jobbergate_flows.errors import JobbergateFlowsError


class MetricsError(JobbergateFlowsError):
    """The base of this package's errors."""


class MetricsUnreachable(MetricsError):
    """The database does not answer, or not now: nothing is known, and asking again later is safe."""


class MetricsRefused(MetricsError):
    """The database does not answer this question; the message holds its own words."""


class DrawingFailed(MetricsError):
    """A plot could not be drawn: its process failed, or took too long."""


class LibraryMissing(MetricsError):
    """Something was asked for that needs a library which is not installed."""
