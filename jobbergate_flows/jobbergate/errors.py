"""The ways in which talking to Jobbergate goes wrong; the names are those of `jobbergate_core`."""

from __future__ import annotations

from jobbergate_flows.errors import JobbergateFlowsError


class JobbergateError(JobbergateFlowsError):
    """The base of this package's errors."""


class AuthenticationError(JobbergateError):
    """No access token could be had. No message holds a token or a secret."""


class ProviderUnreachable(AuthenticationError):
    """The OIDC provider does not answer, or not now: asking again later is safe."""


class TokenError(AuthenticationError):
    """A token, or the file of one, is not as it must be."""
