"""The Jobbergate API, for sites that have it. Nothing here imports Prefect.

Importing this package imports nothing that is slow; `auth` needs httpx and PyJWT.
"""

from __future__ import annotations

from jobbergate_flows.jobbergate.errors import AuthenticationError, JobbergateError, ProviderUnreachable, TokenError

__all__ = ["AuthenticationError", "JobbergateError", "ProviderUnreachable", "TokenError"]
