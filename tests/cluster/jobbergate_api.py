"""The real Jobbergate API, in an environment, a folder and on a port of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.cluster.folder_server import FolderServer
from tests.cluster.postgres import USER, PostgresServer, missing_for_postgres
from tests.cluster.s3_server import REGION, S3Server
from tests.cluster.service import Service, ServiceFailed, free_ports
from tests.jobbergate.oidc import SECRET, OidcProvider, running_provider

# Where scripts/test installs it.
_ENVIRONMENT = Path(sys.prefix) / "jobbergate-api"
PYTHON = _ENVIRONMENT / "bin" / "python"

PERSON = "cli"
"""The client with which Ada (ada@example.org) logs in: she may do all that a person may who is no administrator."""
READER = "reader"
"""The client with which Bob (bob@example.org) logs in, who may read job scripts and nothing else."""
AGENT = "cluster"
"""The client of a cluster's agent, which has the provider's `SECRET`."""
MIRROR = "mirror"
"""The client of a worker that mirrors its runs, with the provider's `SECRET` and an address (hill@example.org)."""

_BUCKET = "jobbergate"
_SCHEMA = Path(__file__).with_name("jobbergate_schema.py")
_WORDS = {"job-templates": "crud", "job-scripts": "crud", "job-submissions": "crud", "clusters": "r"}
_VERBS = {"c": "create", "r": "read", "u": "update", "d": "delete"}
_CLIENTS = {
    PERSON: [f"jobbergate:{what}:{_VERBS[verb]}" for what, verbs in _WORDS.items() for verb in verbs],
    READER: ["jobbergate:job-scripts:read"],
    AGENT: [
        f"jobbergate:{what}"
        for what in ("job-scripts:read", "job-submissions:read", "job-submissions:update", "clusters:update")
    ],
    MIRROR: [f"jobbergate:{what}:{_VERBS[verb]}" for what in ("job-scripts", "job-submissions") for verb in "crud"],
}
_EMAILS = {PERSON: "ada@example.org", READER: "bob@example.org", MIRROR: "hill@example.org"}


def missing_for_jobbergate_api() -> list[str]:
    """What this machine lacks for it; empty when it can be started."""
    # The stamp comes last: without it the environment is not whole.
    whole = _ENVIRONMENT.joinpath(".installed").exists()
    return missing_for_postgres() + ([] if whole else [f"{_ENVIRONMENT} (scripts/test makes it)"])


class JobbergateApi(FolderServer):
    """`with JobbergateApi(postgres, s3, provider) as api: ...`; stopping and starting keeps port, database and files.

    Args:
        postgres: It gets a database of its own there.
        s3: Where it keeps files.
        provider: Whose tokens it takes; it gets the clients `PERSON`, `READER`, `AGENT` and `MIRROR`.
    """

    patience = 90.0

    def __init__(self, postgres: PostgresServer, s3: S3Server, provider: OidcProvider) -> None:
        super().__init__("jobbergate-api-")
        self.provider = provider
        self.s3 = s3
        provider.clients |= {
            client: {"sub": client, "email": _EMAILS.get(client), "permissions": permissions}
            for client, permissions in _CLIENTS.items()
        }
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._postgres = postgres
        # Names of databases have no dashes without quotes.
        self._database = self.folder.name.replace("-", "_")
        self._made = False
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "LOG_LEVEL": "INFO",
            "ARMASEC_DOMAIN": provider.domain.removeprefix("http://"),
            "ARMASEC_USE_HTTPS": "false",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(postgres.port),
            "DATABASE_USER": USER,
            "DATABASE_PSWD": "trusted",
            "DATABASE_NAME": self._database,
            "S3_BUCKET_NAME": _BUCKET,
            "S3_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": REGION,
        }
        self.service = Service(
            "the Jobbergate API",
            [
                *(str(PYTHON), "-I", "-m", "uvicorn", "jobbergate_api.main:app"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
            ],
            self.folder / "api.log",
            environment,
            # It reads a file `.env` from where it runs.
            cwd=str(self.folder),
        )

    @property
    def api_url(self) -> str:
        """What the paths of its endpoints are added to."""
        return f"{self.url}/jobbergate"

    def start(self) -> None:
        """Start it, with its tables and its bucket where there are none, and wait until it answers."""
        self.service.start()
        if not self._made:
            # Meanwhile it imports: it asks the database at its first request only.
            self._make()
        self.service.wait_ready(self.answers, self.patience)

    def _make(self) -> None:
        self._postgres.create_database(self._database)
        self.s3.create_bucket(_BUCKET)
        made = subprocess.run(
            # Isolated: beside it are modules with names of the standard library's.
            [str(PYTHON), "-I", str(_SCHEMA)],
            check=False,
            capture_output=True,
            text=True,
            env=self.service.environment,
            cwd=self.service.cwd,
        )
        if made.returncode != 0:
            raise ServiceFailed(f"the tables of the Jobbergate API cannot be made:\n{made.stderr[-3000:]}")
        self._made = True

    def pause(self) -> None:
        """It accepts connections and answers none."""
        self.service.pause()

    def resume(self) -> None:
        self.service.resume()

    def answers(self) -> bool:
        """Whether it is healthy."""
        try:
            return httpx.get(f"{self.api_url}/health", timeout=5, trust_env=False).status_code == 204
        except httpx.HTTPError:
            return False


def agent_environment(
    api: JobbergateApi, folder: Path, *, interval: int = 10, items_per_page: int = 2
) -> dict[str, str]:
    """What a site has in the environment of its agent.

    Args:
        folder: Where its tokens are, and where submissions run that name no directory.
        interval: Seconds between its looks; the agent takes no less than 10.
        items_per_page: So few that lists have several pages.
    """
    settings = {
        "BASE_API_URL": api.url,
        "OIDC_DOMAIN": api.provider.domain.removeprefix("http://"),
        "OIDC_USE_HTTPS": "false",
        "OIDC_CLIENT_ID": AGENT,
        "OIDC_CLIENT_SECRET": SECRET,
        "CACHE_DIR": str(folder / "agent"),
        "TASK_JOBS_INTERVAL_SECONDS": str(interval),
        "ITEMS_PER_PAGE": str(items_per_page),
        "DEFAULT_SLURM_WORK_DIR": str(folder / "home-of-{username}"),
    }
    return {f"JOBBERGATE_AGENT_{name}": value for name, value in settings.items()}


@contextmanager
def running_api(postgres: PostgresServer) -> Iterator[JobbergateApi]:
    """One with an S3 server and an OIDC provider of its own, where a login by device takes a second."""
    told = OidcProvider(device={"expires_in": 600, "interval": 1})
    with running_provider(told) as provider, S3Server(PYTHON) as s3, JobbergateApi(postgres, s3, provider) as api:
        yield api
