"""What is wrong with an application, an answer, or a template."""

from __future__ import annotations

from jobbergate_flows.errors import JobbergateFlowsError


class ApplicationError(JobbergateFlowsError):
    """The base of this package's errors."""


class LoadingError(ApplicationError):
    """The folder, `jobbergate.yaml`, `jobbergate.py` or a template is wrong."""


class SourceError(ApplicationError):
    """A git reference or an archive cannot be read."""


class DigestMismatch(ApplicationError):
    """The application's content is not the one that was asked for."""


class InterviewError(ApplicationError):
    """The answers do not fit the questions."""


class MissingAnswer(InterviewError):
    """A question has neither an answer nor a default."""


class UnknownAnswer(InterviewError):
    """An answer belongs to no question."""


class BadAnswer(InterviewError):
    """An answer is of the wrong type, out of range, or none of the choices."""


class RenderingError(ApplicationError):
    """A template cannot be rendered: an undefined name, or an error in it."""


class LimitExceeded(ApplicationError):
    """The application's own code took too long, too much memory, or said too much."""


BY_NAME: dict[str, type[ApplicationError]] = {
    kind.__name__: kind
    for kind in (
        ApplicationError,
        LoadingError,
        InterviewError,
        MissingAnswer,
        UnknownAnswer,
        BadAnswer,
        RenderingError,
        LimitExceeded,
    )
}
