"""The ways in which talking to Jobbergate goes wrong; the names are those of `jobbergate_core`."""

from __future__ import annotations

from jobbergate_flows.errors import JobbergateFlowsError


class JobbergateError(JobbergateFlowsError):
    """The base of this package's errors."""

    passing = False
    """Whether the same may be done when it is asked for later."""


class InvalidSettings(JobbergateError):
    """A setting of Jobbergate's has a value that it cannot have, or comes from where it must not."""


class AuthenticationError(JobbergateError):
    """No access token could be had. No message holds a token or a secret."""


class ProviderUnreachable(AuthenticationError):
    """The OIDC provider does not answer, or not now: asking again later is safe."""

    passing = True


class TokenError(AuthenticationError):
    """A token, or the file of one, is not as it must be."""


class JobbergateApiError(JobbergateError):
    """Something that was asked of the API was not done."""


class JobbergateRequestError(JobbergateApiError):
    """The API does not answer: whether it did what it was asked is not known."""

    passing = True


class JobbergateResponseError(JobbergateApiError):
    """The API refuses, in its own words.

    Args:
        status: The HTTP status.
        detail: What the API said, one line.
    """

    def __init__(
        self, message: str, *, status: int, detail: str, where: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status
        self.detail = detail
        # A 401 may also mean that the API cannot reach its OIDC provider.
        self.passing = status in (401, 408, 425, 429) or status >= 500


class ResponseModelError(JobbergateApiError):
    """The API's answer is not what this version understands."""
