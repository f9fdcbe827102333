"""How a person's Jobbergate is set up: the environment variables, the file and the defaults of Jobbergate's own CLI.

Whoever uses that on a machine needs nothing new here. The names are those of `jobbergate_cli.config` 5.12.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobbergate_flows.jobbergate.errors import InvalidSettings

SITE_FILE = Path("/etc/default/jobbergate3-cli")
"""A site's settings for all of its users. Where it is there, no `.env` is read."""


class CliSettings(BaseSettings):
    """The settings of which each is an environment variable of the same name in capitals; see `read_settings`."""

    # Other settings of Jobbergate's CLI, and in a `.env` those of anything, are not for us.
    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True, hide_input_in_errors=True)

    base_api_url: str = Field(default="https://apis.vantagecompute.ai", description="Without `/jobbergate`.")
    armada_api_base: str | None = Field(default=None, description="The older name of it, which wins.")
    oidc_domain: str = Field(default="auth.vantagecompute.ai/realms/vantage", description="The realm, without scheme.")
    oidc_use_https: bool = True
    oidc_client_id: str = "default"
    oidc_client_secret: SecretStr | None = None
    jobbergate_cache_dir: Path = Field(default=Path("~/.local/share/jobbergate3"), validate_default=True)
    jobbergate_requests_timeout: float = Field(default=15.0, gt=0, description="Seconds.")

    @field_validator("base_api_url", "armada_api_base")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("it is no URL: it must begin with https:// or http://")
        return value

    @field_validator("jobbergate_cache_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def api_url(self) -> str:
        """The API's URL, without `/jobbergate`."""
        return self.armada_api_base or self.base_api_url

    @property
    def login_domain(self) -> str:
        """The realm's URL."""
        if "://" in self.oidc_domain:
            return self.oidc_domain
        return f"{'https' if self.oidc_use_https else 'http'}://{self.oidc_domain}"

    @property
    def token_directory(self) -> Path:
        """The folder of token files."""
        return self.jobbergate_cache_dir / "token"


def read_settings(
    *,
    api_url: str | None = None,
    oidc_domain: str | None = None,
    oidc_client_id: str | None = None,
    cache_directory: Path | None = None,
) -> CliSettings:
    """What is given here, else environment variables, else those of a file, else the defaults of Jobbergate's own CLI.

    The file is `/etc/default/jobbergate3-cli`, or, where that is not there, `.env` in the working directory.

    Args:
        api_url: The API's, without `/jobbergate`.
        oidc_domain: The realm, with or without its scheme.
        cache_directory: Its folder `token` holds the tokens.

    Raises:
        InvalidSettings: A setting has a wrong value, or the file is somebody else's, or cannot be read.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in {
            "armada_api_base": api_url,
            "oidc_domain": oidc_domain,
            "oidc_client_id": oidc_client_id,
            "jobbergate_cache_dir": cache_directory,
        }.items()
        if value is not None
    }
    file = SITE_FILE if SITE_FILE.is_file() else Path(".env").absolute()
    try:
        if file != SITE_FILE and file.is_file():
            _refuse_foreign(file)
        return CliSettings(_env_file=file, **given)
    except ValidationError as error:
        [first, *_] = error.errors()
        name = str(first["loc"][0])
        raise InvalidSettings(
            f"the setting {name.upper()} has a wrong value: {first['msg'].removeprefix('Value error, ')}",
            hint="give another one" if name in given else f"see the environment variable {name.upper()}, and {file}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidSettings(
            f"the settings cannot be read: {reason}", where=str(file), hint="make it readable for you"
        ) from None


def _refuse_foreign(file: Path) -> None:
    """A token goes to the address that is in the file: somebody else's must not name it."""
    status = file.stat()
    # Their own group is for many people themselves alone; another one, as a project's folder gives it, is not.
    others = stat.S_IWOTH if status.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & others:
        return
    ours = sorted({name.upper() for name in dotenv_values(file)} & {name.upper() for name in CliSettings.model_fields})
    if ours:
        raise InvalidSettings(
            f"the file belongs to somebody else, or others may write to it, and it sets {', '.join(ours)}",
            where=str(file),
            hint="go to a folder of your own, or take from others the right to write to the file",
        )
