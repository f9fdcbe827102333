"""The block that says where a site's Jobbergate API is, and as whom it is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.slurm.connect import state_directory


class JobbergateAPI(Block):
    """A Jobbergate API, as one of the clients of its OIDC provider.

    With a client secret nobody needs to log in: what workers and deployments take. Without one the tokens of the
    cache directory are used, where `jobbergate-flows jobbergate login` or Jobbergate's own command line puts them.

    Example:
        Load a stored block, and read and publish applications:
        ```python
        from jobbergate_flows.applications import Application
        from jobbergate_flows.blocks import JobbergateAPI
        from jobbergate_flows.jobbergate import calls

        api = JobbergateAPI.load("BLOCK_NAME")
        application = Application.from_jobbergate(api, "parameter-study")
        with api.client() as client:
            submissions = list(client.items(calls.list_job_submissions()))
        ```
    """

    # Its errors would show the secret that it was given.
    model_config = ConfigDict(hide_input_in_errors=True)
    _block_type_name: ClassVar[str | None] = "Jobbergate API"
    _block_type_slug: ClassVar[str | None] = "jobbergate-api"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://github.com/omnivector-solutions.png")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://github.com/omnivector-solutions/jobbergate")
    _description: ClassVar[str | None] = "Reach a Jobbergate API: its applications, job scripts and job submissions."

    base_url: str = Field(
        title="Base URL",
        description="Where the API is, such as `https://jobbergate.example.org`.",
        pattern="^https?://",
    )
    login_domain: str = Field(
        title="Login domain",
        description="The OIDC realm's URL, such as `https://auth.example.org/realms/jobbergate`.",
        pattern="^https?://",
    )
    client_id: str = Field(
        default="default",
        title="Client id",
        description="The OIDC client. For mirrors and bridges it is the cluster's, as Jobbergate knows it.",
    )
    client_secret: SecretStr | None = Field(
        default=None,
        title="Client secret",
        description="The OIDC client's secret. Empty: a person's tokens in the cache directory.",
    )
    cache_directory: str | None = Field(
        default=None,
        title="Cache directory",
        description="The folder of token files. Empty: with a secret one of its own, otherwise that of Jobbergate's "
        "command line.",
    )
    timeout: float = Field(
        default=15.0, gt=0, title="Timeout", description="Seconds without a byte after which a request has failed."
    )
    ca_file: str | None = Field(
        default=None,
        title="CA file",
        description="A file with the CAs that sign the servers' certificates, where the system does not know them.",
    )

    @field_validator("client_secret", "cache_directory", "ca_file")
    @classmethod
    def _empty_is_none(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        return value or None

    def auth(self, *, may_login: bool = False) -> JobbergateAuthHandler:
        """What gives a valid token to each request; also for httpx and requests of your own.

        Args:
            may_login: Whether a request may wait for a person to log in. The URL goes to standard error.

        Raises:
            AuthenticationError: The login domain is no URL, or the CAs cannot be read.
        """
        return JobbergateAuthHandler(
            self._cache(),
            self.login_domain,
            self.client_id,
            self.client_secret,
            may_login=may_login,
            timeout=self.timeout,
            verify=self.ca_file or True,
        )

    def client(self, *, may_login: bool = False) -> JobbergateClient:
        """The API's client, to be closed when it is done with.

        Raises:
            AuthenticationError, JobbergateApiError: A URL is none, or the CAs cannot be read.
        """
        return JobbergateClient(
            self.base_url, self.auth(may_login=may_login), timeout=self.timeout, verify=self.ca_file or True
        )

    def _cache(self) -> Path:
        if self.cache_directory is not None:
            return Path(self.cache_directory).expanduser()
        if self.client_secret is None:
            return default_cache()
        # Tokens of one client are not another's.
        identity = hashlib.sha256(f"{self.login_domain}\n{self.client_id}".encode()).hexdigest()[:16]
        return state_directory() / "jobbergate" / identity


def default_cache() -> Path:
    """The folder in which Jobbergate's own command line keeps a person's tokens."""
    return Path("~/.local/share/jobbergate3/token").expanduser()


__all__ = ["JobbergateAPI"]
