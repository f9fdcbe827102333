"""Reaching Jobbergate from the command line: the settings, the login, its tokens, and its API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobbergate_flows.cli.exits import BadInput, say
from jobbergate_flows.cli.jobbergate import Given
from jobbergate_flows.cli.terminal import may_ask, progress
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.cli_settings import CliSettings, read_settings
from jobbergate_flows.jobbergate.oidc import DeviceCodeData
from jobbergate_flows.jobbergate.tokens import Token, TokenType, organizations

if TYPE_CHECKING:
    from jobbergate_flows.jobbergate.client import JobbergateClient


@dataclass(frozen=True)
class LoggedIn:
    """Who is logged in."""

    email: str
    client_id: str
    organization_id: str | None

    @property
    def name(self) -> str:
        """For people."""
        of = f" of {self.organization_id}" if self.organization_id else ""
        return f"{self.email}{of}, with the client {self.client_id}"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def settings_of(given: Given) -> CliSettings:
    """The settings, with the options of the command line over them.

    Raises:
        InvalidSettings: See `read_settings`.
    """
    return read_settings(
        api_url=given.api_url,
        oidc_domain=given.oidc_domain,
        oidc_client_id=given.oidc_client_id,
        cache_directory=given.cache_directory,
    )


def handler(settings: CliSettings, wait: float = 900.0) -> JobbergateAuthHandler:
    """What logs in: also in the midst of a command, if a person is there to do it.

    Args:
        wait: How many seconds a person has.
    """

    def show(device: DeviceCodeData) -> None:
        say(device.invitation)
        say(f"Waiting for you to log in there, {min(wait, device.expires_in):g} s at most.")

    return JobbergateAuthHandler(
        settings.token_directory,
        settings.login_domain,
        settings.oidc_client_id,
        settings.oidc_client_secret,
        show,
        may_login=may_ask(no_input=False),
        login_seconds=wait,
        timeout=settings.jobbergate_requests_timeout,
    )


@contextmanager
def asking(given: Given) -> Iterator[JobbergateClient]:
    """The API's client, while it is asked.

    Raises:
        InvalidSettings: See `read_settings`.
        JobbergateApiError: The API's URL is none.
    """
    from jobbergate_flows.jobbergate.client import JobbergateClient

    settings = settings_of(given)
    # A person waits for it: an API that is away is told soon.
    client = JobbergateClient(
        settings.api_url, handler(settings), timeout=settings.jobbergate_requests_timeout, retries=2
    )
    with client, progress("Asking Jobbergate"):
        yield client


def log_in(settings: CliSettings, wait: float) -> LoggedIn:
    """Show where to log in, wait, and keep the tokens.

    Raises:
        AuthenticationError: The person declined or was too late, or the provider refuses or does not answer.
    """
    auth = handler(settings, wait)
    auth.login()
    identity = auth.get_identity_data()
    return LoggedIn(identity.email, identity.client_id, identity.organization_id)


def token_of(settings: CliSettings, *, refresh: bool) -> Token:
    """A token that is valid; it is renewed when it is about to expire.

    Raises:
        AuthenticationError: Nobody is logged in, or there is no such token.
        BadInput: The refresh token has expired.
    """
    bearer = handler(settings).acquire_access()
    access = Token(settings.token_directory, TokenType.ACCESS, bearer.removeprefix("Bearer "))
    if not refresh:
        return access
    token = Token(settings.token_directory, TokenType.REFRESH).load_from_cache()
    if "exp" in token.data and token.is_expired():
        raise BadInput(
            "the refresh token has expired",
            where=str(token.file_path),
            hint="log in again with `jobbergate-flows jobbergate login`",
        )
    return token


def facts(token: Token) -> dict[str, Any]:
    """What is said of a token, without the token."""
    data = token.data
    return {
        "token": str(token.label),
        "email": data.get("email"),
        "client_id": data.get("azp"),
        "organizations": list(organizations(token)),
        "expires_at": datetime.fromtimestamp(token.expires_at).astimezone() if "exp" in data else None,
        "permissions": data.get("permissions") or [],
        "file": str(token.file_path),
    }


def contents(token: Token) -> dict[str, Any]:
    """A token's claims.

    Raises:
        BadInput: The provider makes its refresh tokens so that only itself can read them.
    """
    if not token.data:
        raise BadInput(f"only the OIDC provider can read its {token.label} tokens", hint="--plain prints it as it is")
    return dict(token.data)
