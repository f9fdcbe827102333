"""`jobbergate-flows jobbergate`: logging in to Jobbergate, and what its API holds."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.auth import JobbergateAuthHandler
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.models import FileType, NewSubmission, Rendering
from tests.cli.command_line import Ended, run, start
from tests.cli.terminal import Terminal
from tests.cluster.http_server import Handler, answering, serving
from tests.cluster.jobbergate_api import AGENT, PERSON, READER, JobbergateApi
from tests.cluster.service import free_ports
from tests.jobbergate.oidc import SECRET, OidcProvider, running_provider

LOGIN = "jobbergate-flows jobbergate login"
CLUSTER = "unattended"
"""No agent looks after it: what waits for it stays as it is, also while later tests have workers."""


class Person:
    """Somebody at the command line, with a home of their own, and their site's settings."""

    def __init__(self, home: Path, provider: OidcProvider, client: str = "cli", api_url: str = "") -> None:
        self.provider = provider
        self.home = home
        self.env = {
            "HOME": str(home),
            "OIDC_DOMAIN": provider.domain.removeprefix("http://"),
            "OIDC_USE_HTTPS": "false",
            "OIDC_CLIENT_ID": client,
            "BASE_API_URL": api_url or "http://127.0.0.1:1",
        }

    @property
    def tokens(self) -> Path:
        return self.home / ".local" / "share" / "jobbergate3" / "token"

    @property
    def access(self) -> str:
        return (self.tokens / "access.token").read_text()

    def run(self, *arguments: str, **env: str) -> Ended:
        return run("jobbergate", *arguments, env=self.env | env, cwd=self.home)


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    """One where a login by device takes a second."""
    with running_provider(OidcProvider(device={"expires_in": 600, "interval": 1})) as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, provider: OidcProvider) -> Person:
    return Person(tmp_path, provider)


@pytest.fixture
def known(person: Person) -> Person:
    """One who is logged in."""
    assert person.run("login").code == 0
    return person


def is_refused(ended: Ended, code: int, says: str, hint: str = "") -> None:
    """It ended with one line that says why, and a hint, and printed nothing."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    [error] = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    [mend] = [line for line in ended.err.splitlines() if line.startswith("Hint: ")]
    assert says in error
    assert hint in mend


# login


def test_login_shows_the_address_and_keeps_the_tokens_for_their_user_only(person: Person) -> None:
    ended = person.run("login")

    assert (ended.code, ended.out) == (0, "Logged in as ada@example.org, with the client cli.\n")
    assert f"{person.provider.domain}/device?user_code=LMVJ-XOLG" in ended.err
    assert {file.name: file.stat().st_mode & 0o777 for file in person.tokens.glob("*.token")} == {
        "access.token": 0o600,
        "refresh.token": 0o600,
    }
    assert person.access not in ended.out + ended.err


def test_login_as_json_says_who(person: Person) -> None:
    person.provider.claims["organization"] = {"org": {"id": "o-1"}}

    ended = person.run("login", "--json")

    assert json.loads(ended.out) == {"email": "ada@example.org", "client_id": "cli", "organization_id": "o-1"}


def test_a_login_that_nobody_completes_ends(person: Person) -> None:
    person.provider.device_answers = ["authorization_pending"] * 100

    ended = person.run("login", "--wait", "1")

    is_refused(ended, 3, "the login was not completed in time", "log in again")
    assert "1 s at most" in ended.err
    assert len([form for form in person.provider.forms if "device_code" in form]) <= 2
    assert not list(person.tokens.glob("*.token"))


def test_a_login_that_is_declined_fails(person: Person) -> None:
    person.provider.device_answers = ["access_denied"]

    is_refused(person.run("login"), 3, "the login was declined")


def test_a_login_that_is_interrupted_says_so(person: Person) -> None:
    person.provider.device_answers = ["authorization_pending"] * 100
    process = start("jobbergate", "login", env=person.env)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Waiting"):
            break

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert "Interrupted." in err


def test_a_provider_that_does_not_answer_is_unreachable(person: Person) -> None:
    domain = f"127.0.0.1:{free_ports(1)[0]}/realms/tests"

    is_refused(person.run("login", OIDC_DOMAIN=domain), 4, "the OIDC provider does not answer", "whether it runs")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--oidc-domain", "https://", "login"], "the login domain is no URL"),
        (["--api-url", "api.example.org", "show-token"], "it must begin with https://"),
    ],
)
def test_an_address_that_is_none_is_refused(person: Person, arguments: list[str], says: str) -> None:
    is_refused(person.run(*arguments), 3, says)


def test_options_win_over_variables_and_variables_over_a_file(person: Person, provider: OidcProvider) -> None:
    (person.home / ".env").write_text("OIDC_CLIENT_ID=file\nJOBBERGATE_CACHE_DIR=kept\n")
    provider.clients["option"] = {"email": "option@example.org"}

    assert "with the client cli" in person.run("login").out
    assert person.run("--oidc-client-id", "option", "--cache-dir", "other", "login").code == 0

    assert [form["client_id"] for form in provider.forms if "device_code" in form] == ["cli", "option"]
    assert (person.home / "kept" / "token" / "access.token").exists()
    assert (person.home / "other" / "token" / "access.token").exists()


# show-token


def test_show_token_says_whose_it_is_without_the_token(known: Person) -> None:
    ended = known.run("show-token")
    said = json.loads(known.run("show-token", "--json").out)

    assert "ada@example.org" in ended.out
    assert known.access not in ended.out + ended.err
    assert (said["token"], said["email"], said["client_id"]) == ("access", "ada@example.org", "cli")
    assert said["file"] == str(known.tokens / "access.token")
    assert datetime.fromisoformat(said["expires_at"]).timestamp() > datetime.now().timestamp()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--plain"], "{access}"),
        (["--prefix"], "Bearer {access}"),
        (["--plain", "--prefix"], "Bearer {access}"),
        (["--refresh", "--plain"], "{refresh}"),
    ],
)
def test_show_token_prints_it_when_asked(known: Person, options: list[str], shown: str) -> None:
    refresh = (known.tokens / "refresh.token").read_text()

    assert known.run("show-token", *options).out == shown.format(access=known.access, refresh=refresh) + "\n"


def test_show_token_prints_it_as_a_header_and_what_is_in_it(known: Person) -> None:
    assert json.loads(known.run("show-token", "--header").out) == {"Authorization": f"Bearer {known.access}"}
    assert json.loads(known.run("show-token", "--decode").out)["email"] == "ada@example.org"
    assert json.loads(known.run("show-token", "--refresh", "--decode").out)["typ"] == "Refresh"


def test_show_token_renews_a_token_that_has_expired(known: Person) -> None:
    (known.tokens / "access.token").write_text(known.provider.token(-1))

    shown = known.run("show-token", "--plain").out.strip()

    assert shown == known.access
    assert known.provider.given["refresh_token"] == 1


def test_show_token_of_a_client_with_a_secret_needs_no_login(person: Person, provider: OidcProvider) -> None:
    shown = person.run("show-token", "--json", OIDC_CLIENT_SECRET="the-secret-of-the-client")

    assert json.loads(shown.out)["client_id"] == "cli"
    assert dict(provider.given) == {"client_credentials": 1}


def test_show_token_without_a_login_says_how_to_log_in(person: Person) -> None:
    is_refused(person.run("show-token"), 3, "there is no refresh token", LOGIN)
    # Nobody is there to read the address.
    assert person.provider.forms == []


def test_no_token_is_shown_with_an_error(known: Person) -> None:
    stale = known.provider.token(3000, typ="Refresh")
    expired = known.provider.token(-1)
    (known.tokens / "access.token").write_text(expired)
    (known.tokens / "refresh.token").write_text(stale)

    ended = run("--debug", "jobbergate", "show-token", "--plain", env=known.env)

    assert (ended.code, ended.out) == (3, "")
    assert "Token is not active" in ended.err
    assert stale not in ended.err
    assert expired not in ended.err


def test_show_token_does_not_take_options_that_exclude_each_other(known: Person) -> None:
    is_refused(known.run("show-token", "--json", "--plain"), 2, "--json is for what is said of a token")


def test_a_refresh_token_that_cannot_be_used_is_no_token(known: Person) -> None:
    file = known.tokens / "refresh.token"

    file.write_text(known.provider.token(-1, typ="Refresh"))
    is_refused(known.run("show-token", "--refresh", "--plain"), 3, "the refresh token has expired", LOGIN)

    file.write_text("opaque")
    is_refused(known.run("show-token", "--refresh", "--decode"), 3, "only the OIDC provider can read", "--plain")
    assert known.run("show-token", "--refresh", "--plain").out == "opaque\n"

    file.unlink()
    is_refused(known.run("show-token", "--refresh", "--plain"), 3, "there is no refresh token", LOGIN)


# logout


def test_after_a_logout_nobody_is_logged_in(known: Person) -> None:
    ended = known.run("logout")

    assert (ended.code, ended.out) == (0, "")
    assert str(known.tokens) in ended.err
    assert not list(known.tokens.glob("*.token"))
    is_refused(known.run("show-token"), 3, "there is no refresh token", LOGIN)
    assert known.run("logout").code == 0


# What the API holds


@dataclass(frozen=True)
class Entries:
    """What is in the API for these tests; a word is in all of their names."""

    word: str
    application: int
    unnamed: int
    job_script: int
    waiting: int
    submitted: int


@pytest.fixture(scope="module")
def entries(jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """An application with a job script and two submissions, all Ada's; and an application without identifier."""
    word = "listed"
    auth = JobbergateAuthHandler(
        tmp_path_factory.mktemp("ada"), jobbergate_api.provider.domain, PERSON, login_url_handler=lambda _: None
    )
    with JobbergateClient(jobbergate_api.url, auth, timeout=60) as client:
        made = client.send(calls.create_application(f"{word} with a name", identifier=word, description="To be seen"))
        for kind, name in ((FileType.ENTRYPOINT, "job.sh.j2"), (FileType.SUPPORT, "conf.j2")):
            client.send(calls.upload_template(made.id, kind, name, b"#!/bin/sh\n"))
        client.send(calls.upload_workflow(made.id, b"class JobbergateApplication: ...\n", {}))
        unnamed = client.send(calls.create_application(f"{word} without one"))
        rendering = Rendering(template_output_name_mapping={"job.sh.j2": "job.sh", "conf.j2": "conf"})
        script = client.send(calls.render_job_script(made.id, rendering, name=f"{word} script"))
        waiting, submitted = (
            client.send(
                calls.create_job_submission(
                    NewSubmission(
                        name=f"{word} {number}",
                        job_script_id=script.id,
                        client_id=CLUSTER,
                        execution_directory="/tmp",
                        slurm_job_id=number,
                        sbatch_arguments=("--time=5", "--exclusive"),
                    )
                )
            )
            for number in (None, 4711)
        )
    return Entries(word, made.id, unnamed.id, script.id, waiting.id, submitted.id)


@pytest.fixture(scope="module")
def ada(jobbergate_api: JobbergateApi, entries: Entries, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """One who is logged in, and may read all."""
    made = Person(tmp_path_factory.mktemp("ada"), jobbergate_api.provider, PERSON, jobbergate_api.url)
    assert made.run("login").code == 0
    return made


@pytest.fixture(scope="module")
def bob(jobbergate_api: JobbergateApi, entries: Entries, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """One who is logged in, and may read job scripts only."""
    made = Person(tmp_path_factory.mktemp("bob"), jobbergate_api.provider, READER, jobbergate_api.url)
    assert made.run("login").code == 0
    return made


def listed(person: Person, *arguments: str) -> list[int]:
    """The ids of a list."""
    ended = person.run(*arguments, "--json")
    assert ended.code == 0, ended.err
    return [one["id"] for one in json.loads(ended.out)]


def columns(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_lists_are_tables_with_the_newest_first(ada: Person, entries: Entries) -> None:
    applications = ada.run("applications", "list", "--search", entries.word).out.splitlines()
    scripts = ada.run("job-scripts", "list", "--search", entries.word).out.splitlines()
    submissions = ada.run("job-submissions", "list", "--search", entries.word).out.splitlines()

    assert columns(applications[0]) == ["id", "identifier", "name", "owner", "updated", "description"]
    assert [columns(line)[:4] for line in applications[1:]] == [
        [str(entries.unnamed), "-", "listed without one", "ada@example.org"],
        [str(entries.application), "listed", "listed with a name", "ada@example.org"],
    ]
    assert [columns(line)[:4] for line in scripts[1:]] == [
        [str(entries.job_script), "listed script", "listed with a name", "ada@example.org"]
    ]
    assert columns(submissions[0])[:6] == ["id", "name", "status", "cluster", "Slurm id", "Slurm state"]
    assert [columns(line)[:5] for line in submissions[1:]] == [
        [str(entries.submitted), "listed 4711", "SUBMITTED", CLUSTER, "4711"],
        [str(entries.waiting), "listed None", "CREATED", CLUSTER, "-"],
    ]


SORTED_BY = {
    "applications": ["identifier"],
    "job-scripts": ["parent_template_id"],
    "job-submissions": ["status", "job_script_id", "slurm_job_id", "slurm_job_state", "client_id"],
}


@pytest.mark.parametrize("what", SORTED_BY)
def test_lists_are_sorted_by_each_field_that_the_api_sorts_by(
    ada: Person, jobbergate_api: JobbergateApi, what: str
) -> None:
    offered = {"id", "name", "owner_email", "created_at", "updated_at", *SORTED_BY[what]}
    refused = ada.run(what, "list", "--sort", "colour").err
    endpoint = what.replace("applications", "job-script-templates")
    headers = {"Authorization": f"Bearer {ada.access}"}

    assert set(re.findall(r"'(\w+)'", refused.partition("one of")[2])) == offered
    for field in offered:
        params = {"sort_field": field}
        answer = httpx.get(f"{jobbergate_api.api_url}/{endpoint}", params=params, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text


def test_lists_are_filtered_and_sorted_by_the_api(ada: Person, bob: Person, entries: Entries) -> None:
    both = [entries.submitted, entries.waiting]
    submissions = ["job-submissions", "list", "--search", entries.word]

    assert listed(ada, *submissions) == both
    assert listed(ada, *submissions, "--ascending") == both[::-1]
    assert listed(ada, *submissions, "--sort", "name", "--ascending") == both
    assert listed(ada, *submissions, "--status", "submitted") == [entries.submitted]
    assert listed(ada, *submissions, "--slurm-job-ids", "4711, 17") == [entries.submitted]
    assert listed(ada, *submissions, "--from-job-script", str(entries.job_script)) == both
    assert listed(ada, *submissions, "--from-job-script", str(entries.job_script + 1)) == []
    assert listed(ada, "job-scripts", "list", "--from-application", str(entries.application)) == [entries.job_script]
    assert listed(ada, "job-scripts", "list", "--search", entries.word, "--user-only") == [entries.job_script]
    assert listed(bob, "job-scripts", "list", "--search", entries.word, "--user-only") == []


def test_a_search_finds_each_of_its_words(ada: Person, entries: Entries) -> None:
    found = listed(ada, "applications", "list", "--search", "nowhere-to-be-found seen")

    assert found == [entries.application]


def test_what_is_archived_is_listed_when_it_is_asked_for(
    ada: Person, jobbergate_api: JobbergateApi, entries: Entries
) -> None:
    auth = JobbergateAuthHandler(ada.tokens, jobbergate_api.provider.domain, PERSON, may_login=False)
    # A word that nobody else's entries have.
    name = f"archived-{entries.word}"
    with JobbergateClient(jobbergate_api.url, auth, timeout=60) as client:
        made = client.send(calls.create_application(name))
        client.send(calls.update_application(made.id, is_archived=True))

    assert listed(ada, "applications", "list", "--search", name) == []
    assert listed(ada, "applications", "list", "--search", name, "--include-archived") == [made.id]
    assert re.search(r"^archived +yes$", ada.run("applications", "get", str(made.id)).out, re.MULTILINE)


def test_a_list_that_is_longer_than_its_limit_says_so(ada: Person, entries: Entries) -> None:
    submissions = ("job-submissions", "list", "--search", entries.word)

    cut = ada.run(*submissions, "--limit", "1", "--json")
    whole = ada.run(*submissions, "--limit", "2", "--json")

    assert [one["id"] for one in json.loads(cut.out)] == [entries.submitted]
    assert "more than 1" in cut.err
    assert (len(json.loads(whole.out)), whole.err) == (2, "")


def test_an_empty_list_says_so(ada: Person) -> None:
    ended = ada.run("applications", "list", "--search", "nowhere-to-be-found")

    assert (ended.code, ended.out, ended.err) == (0, "", "There is none.\n")
    assert ada.run("applications", "list", "--search", "nowhere-to-be-found", "--json").out == "[]\n"


def test_an_entry_is_shown_with_what_belongs_to_it(ada: Person, entries: Entries) -> None:
    by_id = ada.run("applications", "get", str(entries.application)).out
    by_identifier = ada.run("applications", "get", entries.word).out
    script = ada.run("job-scripts", "get", str(entries.job_script)).out
    submission = ada.run("job-submissions", "get", str(entries.submitted)).out

    assert by_id == by_identifier
    assert {"job.sh.j2 (entrypoint)", "conf.j2"} == set(field(by_id, "templates").split(", "))
    assert (field(by_id, "workflow"), field(by_id, "description")) == ("jobbergate.py", "To be seen")
    assert {"job.sh (entrypoint)", "conf"} == set(field(script, "files").split(", "))
    assert field(script, "application") == str(entries.application)
    assert (field(submission, "status"), field(submission, "cluster")) == ("SUBMITTED", CLUSTER)
    assert (field(submission, "slurm job id"), field(submission, "directory")) == ("4711", "/tmp")
    assert field(submission, "sbatch arguments") == "--time=5 --exclusive"


def field(text: str, name: str) -> str:
    [found] = re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)
    return str(found)


def test_an_entry_as_json_has_the_apis_own_names(ada: Person, entries: Entries) -> None:
    application = json.loads(ada.run("applications", "get", entries.word, "--json").out)
    submission = json.loads(ada.run("job-submissions", "get", str(entries.waiting), "--json").out)

    assert {file["filename"]: file["file_type"] for file in application["template_files"]} == {
        "job.sh.j2": "ENTRYPOINT",
        "conf.j2": "SUPPORT",
    }
    assert datetime.fromisoformat(application["created_at"]).tzinfo is not None
    assert (submission["status"], submission["slurm_job_id"], submission["client_id"]) == ("CREATED", None, CLUSTER)
    assert submission["sbatch_arguments"] == ["--time=5", "--exclusive"]


def test_a_cluster_is_healthy_while_its_agent_reports(
    ada: Person, jobbergate_api: JobbergateApi, tmp_path: Path
) -> None:
    agent = JobbergateAuthHandler(tmp_path, jobbergate_api.provider.domain, AGENT, SECRET, may_login=False)
    with JobbergateClient(jobbergate_api.url, agent, timeout=60) as client:
        client.send(calls.report_cluster(3600))

    [header, *rows] = ada.run("clusters", "list").out.splitlines()
    shown = ada.run("clusters", "get", AGENT)
    said = json.loads(ada.run("clusters", "get", AGENT, "--json").out)

    assert columns(header) == ["cluster", "healthy", "last reported", "every"]
    assert [AGENT, "yes"] in [columns(row)[:2] for row in rows]
    assert (field(shown.out, "healthy"), field(shown.out, "every")) == ("yes", "3600 s")
    assert (said["client_id"], said["is_healthy"], said["interval"]) == (AGENT, True, 3600)


@pytest.mark.parametrize(
    "arguments",
    [
        ["applications", "get", "2147483647"],
        ["applications", "get", "no-such-application"],
        ["applications", "get", "a/../b?c=d"],
        ["job-scripts", "get", "2147483647"],
        ["job-submissions", "get", "2147483647"],
        ["clusters", "get", "no-such-cluster"],
    ],
)
def test_what_is_not_there_is_named(ada: Person, arguments: list[str]) -> None:
    ended = ada.run(*arguments)

    is_refused(ended, 3, "the Jobbergate API answers 404", "see the id")
    assert quote(arguments[-1], safe="") in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["applications", "get", "2147483648"], "is no application's id"),
        (["applications", "get", "9" * 5000], "is no application's id"),
        (["applications", "get", ""], "is no application's id"),
        (["applications", "get", ".."], "is no application's id"),
        (["clusters", "get", ""], "is no cluster's client"),
        (["job-scripts", "get", "one"], "'ID'"),
        (["job-scripts", "get", "0"], "'ID'"),
        (["job-submissions", "get", "2147483648"], "2147483647"),
        (["job-submissions", "list", "--sort", "colour"], "colour"),
        (["job-submissions", "list", "--status", "RUNNING"], "RUNNING"),
        (["job-submissions", "list", "--slurm-job-ids", "1;2"], "is no list of job ids"),
        (["job-submissions", "list", "--slurm-job-ids", ""], "is no list of job ids"),
        (["job-scripts", "list", "--limit", "0"], "--limit"),
    ],
)
def test_what_no_api_would_take_is_not_sent(person: Person, arguments: list[str], says: str) -> None:
    is_refused(person.run(*arguments), 2, says)
    assert person.provider.forms == []


@pytest.mark.parametrize("what", ["applications", "job-submissions", "clusters"])
def test_who_may_not_read_is_told(bob: Person, what: str) -> None:
    assert bob.run("job-scripts", "list").code == 0

    is_refused(bob.run(what, "list"), 3, "the Jobbergate API answers 403", "permission")


def test_without_a_login_nothing_is_read(jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
    nobody = Person(tmp_path, jobbergate_api.provider, PERSON, jobbergate_api.url)

    is_refused(nobody.run("job-scripts", "list"), 3, "there is no refresh token", LOGIN)


def test_on_a_terminal_a_command_logs_in_by_itself(jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
    somebody = Person(tmp_path, jobbergate_api.provider, PERSON, jobbergate_api.url)
    terminal = Terminal("jobbergate", "clusters", "list", "--json", env=somebody.env)

    terminal.read(f"Login Here: {jobbergate_api.provider.domain}/device?user_code=")
    terminal.read_all()

    code, out = terminal.end()
    assert code == 0
    assert isinstance(json.loads(out), list)
    assert somebody.access


def test_an_api_that_does_not_answer_is_unreachable(ada: Person) -> None:
    away = f"http://127.0.0.1:{free_ports(1)[0]}"

    ended = ada.run("job-scripts", "list", BASE_API_URL=away)

    is_refused(ended, 4, "the Jobbergate API does not answer", "whether it runs")
    assert away in ended.err


class Failing(Handler):
    """What an API behind a proxy is while it is down."""

    def do_GET(self) -> None:
        self.send_error(503)


def test_an_api_that_fails_is_unreachable(ada: Person) -> None:
    with serving(Failing) as url:
        ended = ada.run("clusters", "list", BASE_API_URL=url)

    assert ended.code == 4
    assert "the Jobbergate API answers 503" in ended.err


def test_something_else_is_no_api(ada: Person) -> None:
    with answering(pages={"/jobbergate/clusters/status?size=100&page=1": b"<html>Welcome</html>"}) as (url, _):
        is_refused(ada.run("clusters", "list", BASE_API_URL=url), 3, "is none of the Jobbergate API's", "base URL")
