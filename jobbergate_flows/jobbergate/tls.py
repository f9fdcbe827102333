"""Whose certificates are taken, of the API and of its OIDC provider."""

from __future__ import annotations

import ssl

from jobbergate_flows.jobbergate.errors import JobbergateError


def context(verify: bool | str, refused: type[JobbergateError]) -> ssl.SSLContext | bool:
    """What httpx takes as `verify`.

    Args:
        verify: Whether certificates must be valid, or the path of a file with the CAs to trust.
        refused: The error's class.

    Raises:
        JobbergateError: The CAs cannot be read.
    """
    if isinstance(verify, bool):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise refused(
            f"the CAs cannot be read: {error}", where=verify, hint="name a PEM file of certificates"
        ) from error
