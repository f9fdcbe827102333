"""The settings of `jobbergate-agent` (5.12.0, and what its older versions had), understood by this worker.

They come from the environment as `JOBBERGATE_AGENT_<NAME>`, or from the agent's own file `.env`. What has no meaning
here is named by `warnings`, never ignored in silence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AnyUrl, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobbergate_flows.errors import JobbergateFlowsError

if TYPE_CHECKING:
    from jobbergate_flows.blocks.metrics import InfluxMetrics
    from jobbergate_flows.jobbergate.client import JobbergateClient

PREFIX = "JOBBERGATE_AGENT_"
SINGLE_USER = "single-user-mapper"
LDAP = "ldap-cached-mapper"
_SNAP = Path("/var/snap/jobbergate-agent/common/.env")

_MEANINGLESS = {
    "max_pages_per_cycle": "all pages are read",
    "get_extra_groups": "a job always has all of its user's groups",
    "sentry_dsn": "trouble is an event and a line of the worker's log",
    "sentry_env": "there is no Sentry",
    "sentry_traces_sample_rate": "there is no Sentry",
    "sentry_sample_rate": "there is no Sentry",
    "sentry_profiling_sample_rate": "there is no Sentry",
    "scontrol_path": "jobs are asked for with squeue and sacct",
    "influx_pool_size": "one connection is kept for each reading",
    "influx_udp_port": "metrics are read, and UDP only writes them",
}


class AgentSettingsRefused(JobbergateFlowsError):
    """A setting of the agent's is none, or cannot be obeyed here."""


class AgentSettings(BaseSettings):
    """The agent's settings, with its own defaults.

    `load` reads them. The words of each are the agent's documentation's; `docs/jobbergate-api.md` says of all what
    becomes of them.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX, env_file=None, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    sbatch_path: Path = Path("/usr/bin/sbatch")
    scontrol_path: Path = Path("/usr/bin/scontrol")
    scancel_path: Path = Path("/usr/bin/scancel")
    x_slurm_user_name: str | None = None
    single_user_submitter: str | None = None
    slurm_user_mapper: str | None = None
    default_slurm_work_dir: str = "/home/{username}"

    base_api_url: str = ""
    max_pages_per_cycle: int = Field(default=5, ge=1)
    items_per_page: int = Field(default=100, ge=1, le=100)
    oidc_domain: str = ""
    oidc_client_id: str = "jobbergate-agent"
    oidc_client_secret: SecretStr = SecretStr("")
    oidc_use_https: bool = True
    cache_dir: Path = Path("~/.cache/jobbergate-agent")
    requests_timeout: int | None = Field(default=15, ge=1)

    task_jobs_interval_seconds: int = Field(default=60, ge=10, le=3600)
    task_self_update_interval_seconds: int | None = Field(default=None, ge=10)
    task_garbage_collection_hour: int | None = Field(default=None, ge=0, le=23)
    write_submission_files: bool = True
    get_extra_groups: bool = False

    sentry_dsn: str | None = None
    sentry_env: str = "local"
    sentry_traces_sample_rate: float = 0.01
    sentry_sample_rate: float = 0.25
    sentry_profiling_sample_rate: float = 0.01

    influx_dsn: AnyUrl | None = Field(default=None, repr=False)
    influx_pool_size: int = Field(default=10, ge=1)
    influx_ssl: bool = False
    influx_verify_ssl: bool = False
    influx_timeout: int | None = Field(default=None, ge=1)
    influx_udp_port: int = Field(default=4444, ge=1, le=65535)
    influx_cert_path: Path | None = None

    ldap_domain: str | None = None
    ldap_password: SecretStr | None = None
    ldap_bind_dn: str | None = None
    ldap_search_base: str | None = None
    ldap_port: int = Field(default=636, ge=1, le=65535)
    ldap_uid_attribute: str = "uid"

    unknown: Annotated[tuple[str, ...], NoDecode] = Field(default=(), exclude=True)
    """Names with the agent's prefix that no version of it has."""

    @classmethod
    def load(cls, env_file: Path | None = None) -> Self:
        """Read them from the environment and the agent's file.

        Args:
            env_file: The file; otherwise that of the agent's snap, or `.env` in the working directory, where there is
                one.

        Raises:
            AgentSettingsRefused: One is none, or one is missing that there is no way around.
        """
        file = env_file or (_SNAP if _SNAP.exists() else Path(".env"))
        if env_file is not None and not file.is_file():
            raise AgentSettingsRefused("there is no such file", where=str(file), hint="name the agent's .env")
        try:
            return cls(_env_file=file, unknown=tuple(_unknown(file)))
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            name = PREFIX + "_".join(str(part) for part in fault["loc"]).upper() if fault["loc"] else None
            raise AgentSettingsRefused(
                fault["msg"].removeprefix("Value error, "), where=name, hint=f"see the environment, and {file}"
            ) from error
        except OSError as error:
            raise AgentSettingsRefused(f"it cannot be read: {error.strerror}", where=str(file)) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("sbatch_path", "scontrol_path", "scancel_path"):
            if not getattr(self, name).is_absolute():
                raise ValueError(f"{PREFIX}{name.upper()} must be an absolute path to an existing file")
        for name in ("base_api_url", "oidc_domain"):
            if not getattr(self, name):
                raise ValueError(f"{PREFIX}{name.upper()} is missing: the agent's own default is somebody's service")
        if not self.oidc_client_secret.get_secret_value():
            raise ValueError(f"{PREFIX}OIDC_CLIENT_SECRET is missing: a service has no other way to log in")
        try:
            self.work_dir("somebody")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"{PREFIX}DEFAULT_SLURM_WORK_DIR may hold {{username}} and no other braces") from error
        if self.influx_dsn is not None:
            if self.influx_dsn.scheme not in ("influxdb", "https+influxdb", "udp+influxdb"):
                raise ValueError("INFLUX_DSN scheme must be one of 'influxdb', 'https+influxdb' or 'udp+influxdb'")
            if self.influx_ssl and self.influx_cert_path is None:
                raise ValueError("INFLUX_CERT_PATH must be provided when INFLUX_SSL is enabled")
        return self

    @property
    def mapper(self) -> str:
        """The name of the user mapper."""
        return self.slurm_user_mapper or SINGLE_USER

    @property
    def single_user(self) -> str | None:
        """Whose all submissions are, where the mapper is that of one user; None where nothing says it."""
        return (self.single_user_submitter or self.x_slurm_user_name) if self.mapper == SINGLE_USER else None

    @property
    def login_domain(self) -> str:
        """The realm's URL."""
        return f"{'https' if self.oidc_use_https else 'http'}://{self.oidc_domain}"

    def work_dir(self, username: str) -> str:
        """Where a submission of this user runs that names no directory."""
        return self.default_slurm_work_dir.format(username=username)

    def client(self) -> JobbergateClient:
        """A client of the API, as the agent's OIDC client. It shares the agent's token files.

        Raises:
            JobbergateApiError: The URL is none.
            AuthenticationError: The domain is none.
        """
        from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
        from jobbergate_flows.jobbergate.client import JobbergateClient

        timeout = float(self.requests_timeout or 60)
        auth = JobbergateAuthHandler(
            self.cache_dir.expanduser() / "cluster-api",
            self.login_domain,
            self.oidc_client_id,
            self.oidc_client_secret,
            may_login=False,
            timeout=timeout,
        )
        return JobbergateClient(self.base_api_url, auth, timeout=timeout)

    def metrics(self) -> InfluxMetrics | None:
        """Where Slurm's metrics are, as the block that says so; None where nothing says it."""
        dsn = self.influx_dsn
        if dsn is None or dsn.scheme == "udp+influxdb":
            return None
        from jobbergate_flows.blocks.metrics import InfluxMetrics

        secure = self.influx_ssl or dsn.scheme.startswith("https")
        verify = self.influx_verify_ssl
        return InfluxMetrics(
            url=f"{'https' if secure else 'http'}://{dsn.host}:{dsn.port or 8086}",
            database=(dsn.path or "").strip("/") or "slurm",
            username=dsn.username,
            password=SecretStr(dsn.password) if dsn.password else None,
            verify_tls=verify,
            ca_file=str(self.influx_cert_path) if verify and self.influx_cert_path else None,
            timeout=float(self.influx_timeout or 60),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was set and has no meaning here, or another one, each in one line."""
        said = [
            f"{PREFIX}{name.upper()} has no meaning here: {why}"
            for name, why in _MEANINGLESS.items()
            if name in self.model_fields_set
        ]
        said += [f"{PREFIX}{name} is no setting of the agent's" for name in self.unknown]
        for name, program in (("sbatch_path", "sbatch"), ("scancel_path", "scancel")):
            path = getattr(self, name)
            found = shutil.which(program)
            if name in self.model_fields_set and (found is None or Path(found).resolve() != path.resolve()):
                where = f"finds {found}" if found else "finds none"
                said.append(f"{PREFIX}{name.upper()} is not obeyed: the worker's PATH {where}, which is used")
        if self.influx_dsn is not None and self.influx_dsn.scheme == "udp+influxdb":
            said.append(f"{PREFIX}INFLUX_DSN is not obeyed: nothing can be read by UDP")
        if self.task_self_update_interval_seconds is not None:
            said.append(
                f"{PREFIX}TASK_SELF_UPDATE_INTERVAL_SECONDS only says how often the worker's setting update_index is "
                "looked at: nothing is installed by itself"
            )
        if not self.write_submission_files:
            said.append(
                f"{PREFIX}WRITE_SUBMISSION_FILES=false rejects submissions with supporting files, as in the agent; "
                "the job script itself is written all the same"
            )
        return tuple(said)


def _unknown(file: Path) -> Iterator[str]:
    from dotenv import dotenv_values

    given: dict[str, Any] = dict(os.environ)
    if file.is_file():
        given |= dotenv_values(file)
    known = {name.upper() for name in AgentSettings.model_fields} - {"UNKNOWN"}
    for name in sorted(given):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper.removeprefix(PREFIX) not in known:
            yield upper.removeprefix(PREFIX)
