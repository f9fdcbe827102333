"""The settings of jobbergate-agent: read as it reads them, and none of them ignored in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_worker.identity.mapping import TableMapper
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.jobbergate.agent_settings import AgentSettings, AgentSettingsRefused
from agent_worker.jobbergate.owners import OneAccount, owners_mapper

NEEDED = {
    "BASE_API_URL": "https://apis.example.org",
    "OIDC_DOMAIN": "auth.example.org/realms/site",
    "OIDC_CLIENT_SECRET": "a-secret",
}
OWNER = IdentityPolicy("owner")
ME = IdentityPolicy("single-user", "me")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no file `.env`."""
    monkeypatch.chdir(tmp_path)


def given(monkeypatch: pytest.MonkeyPatch, **settings: str) -> AgentSettings:
    for name, value in {**NEEDED, **settings}.items():
        monkeypatch.setenv(f"JOBBERGATE_AGENT_{name}", value)
    return AgentSettings.load()


def test_they_have_the_agents_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = given(monkeypatch)
    assert (agent.task_jobs_interval_seconds, agent.items_per_page, agent.requests_timeout) == (60, 100, 15)
    assert agent.oidc_client_id == "jobbergate-agent"
    assert agent.login_domain == "https://auth.example.org/realms/site"
    assert agent.work_dir("ada") == "/home/ada"
    assert agent.warnings == ()
    assert agent.metrics() is None


def test_they_are_read_from_the_agents_file_and_the_environment_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"JOBBERGATE_AGENT_{name}={value}" for name, value in NEEDED.items()]
    lines += ["JOBBERGATE_AGENT_TASK_JOBS_INTERVAL_SECONDS=30", "OTHERS=1", "JOBBERGATE_AGENT_ITEMS_PER_PAGE=10"]
    (tmp_path / ".env").write_text("\n".join(lines))
    monkeypatch.setenv("JOBBERGATE_AGENT_ITEMS_PER_PAGE", "20")
    agent = AgentSettings.load()
    assert (agent.task_jobs_interval_seconds, agent.items_per_page) == (30, 20)
    assert AgentSettings.load(tmp_path / ".env") == agent


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentSettingsRefused, match="there is no such file"):
        AgentSettings.load(tmp_path / "gone")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"BASE_API_URL": ""}, "JOBBERGATE_AGENT_BASE_API_URL is missing"),
        ({"OIDC_DOMAIN": ""}, "JOBBERGATE_AGENT_OIDC_DOMAIN is missing"),
        ({"OIDC_CLIENT_SECRET": ""}, "JOBBERGATE_AGENT_OIDC_CLIENT_SECRET is missing"),
        ({"TASK_JOBS_INTERVAL_SECONDS": "5"}, "JOBBERGATE_AGENT_TASK_JOBS_INTERVAL_SECONDS: Input should be"),
        ({"ITEMS_PER_PAGE": "101"}, "JOBBERGATE_AGENT_ITEMS_PER_PAGE"),
        ({"SBATCH_PATH": "sbatch"}, "JOBBERGATE_AGENT_SBATCH_PATH must be an absolute path"),
        ({"DEFAULT_SLURM_WORK_DIR": "/home/{user}"}, "DEFAULT_SLURM_WORK_DIR may hold {username}"),
        ({"TASK_GARBAGE_COLLECTION_HOUR": "24"}, "JOBBERGATE_AGENT_TASK_GARBAGE_COLLECTION_HOUR"),
        ({"INFLUX_DSN": "http://host"}, "INFLUX_DSN scheme"),
        ({"INFLUX_DSN": "influxdb://host/db", "INFLUX_SSL": "true"}, "INFLUX_CERT_PATH must be provided"),
    ],
)
def test_what_is_no_setting_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], says: str
) -> None:
    with pytest.raises(AgentSettingsRefused) as refused:
        given(monkeypatch, **settings)
    assert says in str(refused.value)
    assert "a-secret" not in str(refused.value)


def test_what_has_no_meaning_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = given(
        monkeypatch,
        SENTRY_DSN="https://key@sentry.example.org/1",
        MAX_PAGES_PER_CYCLE="5",
        GET_EXTRA_GROUPS="true",
        SBATCH_PATH="/nowhere/sbatch",
        WRITE_SUBMISSION_FILES="false",
        TASK_SELF_UPDATE_INTERVAL_SECONDS="3600",
        ODD_ONE="1",
    )
    said = "\n".join(agent.warnings)
    for name in (
        "SENTRY_DSN", "MAX_PAGES_PER_CYCLE", "GET_EXTRA_GROUPS", "SBATCH_PATH", "WRITE_SUBMISSION_FILES",
        "TASK_SELF_UPDATE_INTERVAL_SECONDS", "ODD_ONE",
    ):  # fmt: skip
        assert f"JOBBERGATE_AGENT_{name}" in said
    assert len(agent.warnings) == 7


def test_a_path_that_is_used_all_the_same_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert given(monkeypatch, SBATCH_PATH=str(sbatch)).warnings == ()


def test_no_secret_is_in_their_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = given(monkeypatch, LDAP_PASSWORD="hidden", INFLUX_DSN="influxdb://me:hidden@host/db")
    assert "a-secret" not in repr(agent)
    assert "hidden" not in repr(agent)


def test_the_metrics_are_where_the_agent_had_them(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = given(monkeypatch, INFLUX_DSN="https+influxdb://me:word@influx.example.org:8087/slurm_acct").metrics()
    assert metrics is not None
    assert (metrics.url, metrics.database, metrics.username) == (
        "https://influx.example.org:8087", "slurm_acct", "me",
    )  # fmt: skip
    assert metrics.password is not None
    assert metrics.password.get_secret_value() == "word"
    assert not metrics.verify_tls


def test_with_one_user_everybodys_submissions_are_that_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owners_mapper(given(monkeypatch), ME, None) is None
    assert owners_mapper(given(monkeypatch, SINGLE_USER_SUBMITTER="me"), ME, None) is None
    mapper = owners_mapper(given(monkeypatch, SINGLE_USER_SUBMITTER="ubuntu"), OWNER, None)
    assert mapper == OneAccount("ubuntu")
    assert mapper.account("anybody@example.org") == "ubuntu"


def test_another_account_than_the_policys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentSettingsRefused, match="all runs of this worker are me's"):
        owners_mapper(given(monkeypatch, X_SLURM_USER_NAME="ubuntu"), ME, None)
    with pytest.raises(AgentSettingsRefused, match="set the worker's `policy` to owner"):
        owners_mapper(given(monkeypatch, SLURM_USER_MAPPER="ldap-cached-mapper"), ME, None)


def test_the_workers_own_mapper_serves_where_the_agent_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableMapper({"ada@example.org": "ada"})
    assert owners_mapper(given(monkeypatch), OWNER, table) is table


def test_where_nobody_knows_the_owners_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentSettingsRefused, match="nobody knows the accounts"):
        owners_mapper(given(monkeypatch), OWNER, None)


def test_the_agents_ldap_mapper_needs_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentSettingsRefused, match="JOBBERGATE_AGENT_LDAP_BIND_DN, JOBBERGATE_AGENT_LDAP_SEARCH_BASE"):
        owners_mapper(
            given(
                monkeypatch, SLURM_USER_MAPPER="ldap-cached-mapper", LDAP_DOMAIN="ldap.example.org", LDAP_PASSWORD="x"
            ),
            OWNER,
            None,
        )
