"""The bridge of a worker, made of its settings and the agent's."""

from __future__ import annotations

from pathlib import Path

from agent_worker.accounts import AccountSessions
from agent_worker.admission import Rules
from agent_worker.jobbergate.agent_settings import AgentSettings
from agent_worker.jobbergate.bridge import Bridge
from agent_worker.jobbergate.owners import owners_mapper
from agent_worker.jobbergate.submission import Submissions
from agent_worker.settings import WorkerSettings
from jobbergate_flows.jobbergate.links import Links


def agent_settings(settings: WorkerSettings) -> AgentSettings:
    """The agent's settings, from where the worker's say that they are.

    Raises:
        AgentSettingsRefused: One is none, or missing.
    """
    return AgentSettings.load(Path(settings.bridge_env) if settings.bridge_env else None)


def make_bridge(agent: AgentSettings, rules: Rules, accounts: AccountSessions, work_pool: str) -> Bridge:
    """The bridge to the API that the agent's settings name.

    Args:
        rules, accounts, work_pool: The worker's.

    Raises:
        AgentSettingsRefused: The agent's settings and the worker's contradict each other.
        MapperBroken: There is no such user mapper, or it cannot work.
        JobbergateError: The API's URL, or the provider's, is none.
    """
    mapper = owners_mapper(agent, rules.policy, rules.mapper)
    submissions = Submissions(agent, agent.client(), Links(accounts.own.ledger), mapper)
    return Bridge(submissions, accounts, rules.policy, work_pool)
