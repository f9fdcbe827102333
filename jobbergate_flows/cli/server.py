"""The Prefect server's errors, in this program's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobbergate_flows.cli.exits import BadInput, ServerUnreachable

_MEND = "start it, or set PREFECT_API_URL (`prefect config set PREFECT_API_URL=...`)"


@contextmanager
def server_errors() -> Iterator[None]:
    """Turn errors of Prefect and of its connection into ones with an exit code.

    Raises:
        ServerUnreachable: The server does not answer.
        BadInput: It answered that something is not there, or will not take it.
    """
    import httpx
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        # Prefect would start a server of its own for this one command.
        raise ServerUnreachable("no Prefect server is named", hint=_MEND)
    try:
        yield
    except ObjectNotFound as error:
        raise BadInput(f"the Prefect server does not have it: {_words(error)}") from error
    except PrefectHTTPStatusError as error:
        raise BadInput(f"the Prefect server refused it: {_words(error)}") from error
    except httpx.HTTPError as error:
        raise _unreachable(error, PREFECT_API_URL.value()) from error
    except RuntimeError as error:
        # Prefect's client has no type of its own for this.
        if not str(error).startswith("Failed to reach API"):
            raise
        raise _unreachable(error, PREFECT_API_URL.value()) from error


def _unreachable(error: Exception, url: str | None) -> ServerUnreachable:
    return ServerUnreachable(
        f"the Prefect server does not answer: {_words(error)}",
        where=url,
        hint=_MEND,
    )


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
