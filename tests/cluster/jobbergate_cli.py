"""The released command line of Jobbergate, run as a user does, against the API that the tests start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.jobbergate_api import AGENT, PERSON, JobbergateApi

# Where scripts/test installs it.
_ENVIRONMENT = Path(sys.prefix) / "jobbergate-cli"
COMMAND = _ENVIRONMENT / "bin" / "jobbergate"
_PATIENCE = 120


def missing_for_jobbergate_cli() -> list[str]:
    """What this machine lacks for it; empty when it can be run."""
    return [] if _ENVIRONMENT.joinpath(".installed").exists() else [f"{_ENVIRONMENT} (scripts/test makes it)"]


class CliFailed(AssertionError):
    """It ended with another exit code than 0; the message is what it printed."""


@dataclass(frozen=True)
class JobbergateCli:
    """Its settings, and its commands.

    Args:
        api: The API and the OIDC provider that it talks to.
        home: A folder of its own, in which it keeps tokens and logs, and in which it runs.
        client: The OIDC client with which its user logs in.
        cluster: The cluster that it submits to.
    """

    api: JobbergateApi
    home: Path
    client: str = PERSON
    cluster: str = AGENT

    @property
    def tokens(self) -> Path:
        """The folder in which it keeps its tokens."""
        return self.home / ".local" / "share" / "jobbergate3" / "token"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables by which a site tells it where its API and its provider are."""
        return {
            "BASE_API_URL": self.api.url,
            "OIDC_DOMAIN": self.api.provider.domain.removeprefix("http://"),
            "OIDC_USE_HTTPS": "false",
            "OIDC_CLIENT_ID": self.client,
        }

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Run a command without a terminal; what it printed.

        Args:
            env: More environment variables.

        Raises:
            CliFailed: It failed.
        """
        done = subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.home,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.home),
                "DEFAULT_CLUSTER_NAME": self.cluster,
                # What it prints is made for terminals of this width.
                "COLUMNS": "400",
                # It opens the address of the login in a browser: in one that does nothing.
                "BROWSER": "true",
                **self.settings,
                **(env or {}),
            },
            timeout=_PATIENCE,
        )
        if done.returncode != 0:
            raise CliFailed(f"jobbergate {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        """Run a command; the first JSON that it printed."""
        out = self.run("--raw", *arguments)
        begin = re.search(r"^[\[{]", out, re.MULTILINE)
        if begin is None:
            raise CliFailed(f"jobbergate {' '.join(map(str, arguments))} printed no JSON: {out}")
        return json.JSONDecoder().raw_decode(out[begin.start() :])[0]

    def login(self) -> None:
        """Log in; the provider of the tests lets everybody in at once."""
        self.run("login")

    def create_application(self, folder: Path, identifier: str) -> int:
        """Create an application of a folder, with all of its files; its id."""
        made = self.json(
            *("applications", "create", "--name", identifier.capitalize()),
            *("--identifier", identifier, "--application-path", folder),
        )
        return int(made["id"])

    def create_job_script(
        self, application: int | str, *, answers: Mapping[str, Any] | None = None, sbatch: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Create a job script of an application; questions without an answer take their defaults.

        Args:
            application: Its id or its identifier.
            sbatch: Parameters for sbatch, such as `--comment=why`.
        """
        given = self.home / "answers.json"
        given.write_text(json.dumps(dict(answers or {})))
        made: dict[str, Any] = self.json(
            *("job-scripts", "create", str(application), "--fast", "--no-submit", "--no-download"),
            *("--param-file", given),
            *(word for one in sbatch for word in ("--sbatch-params", one)),
        )
        return made

    def submit(
        self, job_script: int, directory: Path, *, name: str = "submitted", sbatch: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Create a submission of a job script to the cluster.

        Args:
            directory: Where it is to be run.
            sbatch: Arguments for sbatch.
        """
        made: dict[str, Any] = self.json(
            *("job-submissions", "create", str(job_script), "--name", name),
            *("--execution-directory", directory),
            *(word for one in sbatch for word in ("--sbatch-arguments", one)),
        )
        return made

    def submission(self, identifier: int) -> dict[str, Any]:
        """What it shows of a submission."""
        found: dict[str, Any] = self.json("job-submissions", "get-one", str(identifier))
        return found

    def cancel(self, submission: int) -> dict[str, Any]:
        """Ask for the end of a submission."""
        cancelled: dict[str, Any] = self.json("job-submissions", "cancel", str(submission))
        return cancelled
