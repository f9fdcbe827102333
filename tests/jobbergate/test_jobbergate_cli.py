"""Beside the released Jobbergate CLI, on the real API: what it makes is read here, and each has the other's login."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from jobbergate_flows.applications.application import Application
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.errors import AuthenticationError
from jobbergate_flows.jobbergate.tokens import Token, TokenType
from tests.cluster.jobbergate_api import AGENT, PERSON, JobbergateApi
from tests.cluster.jobbergate_cli import CliFailed, JobbergateCli
from tests.jobbergate.oidc import SECRET, OidcProvider

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 60


@pytest.fixture
def provider(jobbergate_api: JobbergateApi) -> OidcProvider:
    return jobbergate_api.provider


@pytest.fixture
def cli(jobbergate_cli: JobbergateCli, tmp_path: Path) -> JobbergateCli:
    """One in which nobody has logged in yet."""
    return replace(jobbergate_cli, home=tmp_path)


@pytest.fixture
def handler(cli: JobbergateCli, provider: OidcProvider) -> Callable[[], JobbergateAuthHandler]:
    """Makes handlers with the folder of the CLI's tokens; each knows what a process just started knows."""

    def made() -> JobbergateAuthHandler:
        return JobbergateAuthHandler(
            cli.tokens, provider.domain, PERSON, login_url_handler=lambda _: None, may_login=False
        )

    return made


def read(api: JobbergateApi, auth: JobbergateAuthHandler, path: str) -> httpx.Response:
    answer = httpx.get(f"{api.api_url}{path}", auth=auth, timeout=PATIENCE, trust_env=False)
    answer.raise_for_status()
    return answer


def used_up(cli: JobbergateCli, provider: OidcProvider) -> str:
    """Put a token that has expired in the place of the access token, and return the refresh token beside it."""
    expired = provider.token(-1, **{"azp": PERSON, **provider.clients[PERSON]})
    Token(cli.tokens, TokenType.ACCESS, expired).save_to_cache()
    return Token(cli.tokens, TokenType.REFRESH).load_from_cache().content


@pytest.mark.parametrize("name", ["parameter-study", "array-over-files"])
def test_an_example_created_by_the_cli_renders_as_it_does_here(
    jobbergate_cli: JobbergateCli, jobbergate_api: JobbergateApi, provider: OidcProvider, name: str
) -> None:
    jobbergate_cli.create_application(EXAMPLES / name, f"as-here-{name}")
    made = jobbergate_cli.create_job_script(f"as-here-{name}")

    auth = JobbergateAuthHandler(jobbergate_cli.tokens, provider.domain, PERSON, may_login=False)
    files = f"/job-scripts/{made['job_script_id']}/upload"
    theirs = {
        file["filename"]: read(jobbergate_api, auth, f"{files}/{file['filename']}").text for file in made["files"]
    }
    [entrypoint] = [file["filename"] for file in made["files"] if file["file_type"] == "ENTRYPOINT"]
    ours = Application.from_path(EXAMPLES / name).render()
    # Jobbergate drops the line's end at a file's end.
    assert theirs == {file: text.removesuffix("\n") for file, text in {**ours.files, entrypoint: ours.text}.items()}


def test_a_submission_of_the_cli_waits_for_the_clusters_agent_until_it_is_cancelled(
    jobbergate_cli: JobbergateCli, jobbergate_api: JobbergateApi, provider: OidcProvider, tmp_path: Path
) -> None:
    jobbergate_cli.create_application(EXAMPLES / "parameter-study", "to-wait")
    job_script = jobbergate_cli.create_job_script("to-wait", answers={"cpus": 3}, sbatch=["--comment=why"])
    made = jobbergate_cli.submit(job_script["job_script_id"], tmp_path, name="waiting", sbatch=["--time=7"])
    assert (made["status"], made["cluster_name"], made["name"]) == ("CREATED", AGENT, "waiting")

    agent = JobbergateAuthHandler(tmp_path / "agent", provider.domain, AGENT, SECRET, may_login=False)
    pending = {one["id"]: one for one in read(jobbergate_api, agent, "/job-submissions/agent/pending").json()["items"]}
    found = pending[made["job_submission_id"]]
    assert (found["owner_email"], found["execution_directory"]) == ("ada@example.org", str(tmp_path))
    assert found["sbatch_arguments"] == ["--time=7"]
    script = read(jobbergate_api, agent, f"/job-scripts/{job_script['job_script_id']}/upload/job.sh").text
    assert "#SBATCH --comment=why" in script
    assert "#SBATCH --cpus-per-task=3" in script

    assert jobbergate_cli.cancel(made["job_submission_id"])["status"] == "CANCELLED"
    assert jobbergate_cli.submission(made["job_submission_id"])["status"] == "CANCELLED"


def test_a_login_of_the_cli_counts_here(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler], jobbergate_api: JobbergateApi
) -> None:
    with pytest.raises(AuthenticationError, match="there is no refresh token"):
        handler().acquire_access()

    cli.login()

    auth = handler()
    assert read(jobbergate_api, auth, "/job-scripts").json()["page"] == 1
    assert (auth.get_identity_data().email, auth.get_identity_data().client_id) == ("ada@example.org", PERSON)
    assert auth.acquire_access() == cli.run("show-token", "--plain", "--prefix").strip()


def test_a_login_here_counts_for_the_cli(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler], provider: OidcProvider
) -> None:
    auth = handler()
    auth.login()
    given = provider.given.copy()

    shown = cli.run("show-token", "--plain", "--prefix").strip()
    cli.run("job-scripts", "list", "--page", "1")

    assert shown == auth.acquire_access()
    assert provider.given == given
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in cli.tokens.glob("*.token")} == {
        "access.token": "0o600",
        "refresh.token": "0o600",
    }


def test_a_logout_of_the_cli_counts_here(cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler]) -> None:
    handler().login()

    cli.run("logout")

    with pytest.raises(AuthenticationError, match="there is no refresh token"):
        handler().acquire_access()


def test_a_logout_here_counts_for_the_cli(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler], provider: OidcProvider
) -> None:
    cli.login()
    handler().logout()
    provider.failing = 503, "away"
    try:
        # It would log in anew.
        with pytest.raises(CliFailed, match="Authentication error"):
            cli.run("job-scripts", "list", "--page", "1")
    finally:
        provider.failing = None


def test_what_the_cli_renewed_is_taken_here(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler], provider: OidcProvider
) -> None:
    cli.login()
    old = used_up(cli, provider)
    auth = handler()
    auth.load_from_cache()
    renewals = provider.given["refresh_token"]

    renewed = cli.run("show-token", "--plain", "--prefix").strip()

    assert auth.acquire_access() == renewed
    assert provider.given["refresh_token"] == renewals + 1
    # The refresh token at hand is the new one too: the provider takes the old one no more.
    auth.refresh_tokens()
    assert Token(cli.tokens, TokenType.REFRESH).load_from_cache().content != old


def test_what_was_renewed_here_is_taken_by_the_cli(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler], provider: OidcProvider
) -> None:
    cli.login()
    used_up(cli, provider)
    logins = provider.given["device_code"]

    renewed = handler().acquire_access()
    assert cli.run("show-token", "--plain", "--prefix").strip() == renewed

    # And it renews with the refresh token that was got here.
    used_up(cli, provider)
    assert cli.run("show-token", "--plain", "--prefix").strip() != renewed
    assert provider.given["device_code"] == logins


def test_a_folder_that_only_its_user_reads_stays_so(
    cli: JobbergateCli, handler: Callable[[], JobbergateAuthHandler]
) -> None:
    handler().login()

    cli.login()

    assert oct(os.stat(cli.tokens).st_mode & 0o777) == "0o700"
