"""Applications: loading them, their questions and forms, rendering them. Nothing in here knows of Prefect."""

from jobbergate_flows.applications.application import (
    Application,
    ApplicationInterface,
    Question,
    load_application,
)
from jobbergate_flows.applications.errors import (
    ApplicationError,
    BadAnswer,
    DigestMismatch,
    InterviewError,
    LimitExceeded,
    LoadingError,
    MissingAnswer,
    RenderingError,
    SourceError,
    UnknownAnswer,
)
from jobbergate_flows.applications.isolation import Limits
from jobbergate_flows.applications.job_script import JobScript

__all__ = [
    "Application",
    "ApplicationError",
    "ApplicationInterface",
    "BadAnswer",
    "DigestMismatch",
    "InterviewError",
    "JobScript",
    "LimitExceeded",
    "Limits",
    "LoadingError",
    "MissingAnswer",
    "Question",
    "RenderingError",
    "SourceError",
    "UnknownAnswer",
    "load_application",
]
