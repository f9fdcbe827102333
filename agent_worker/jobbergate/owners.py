"""Whose a job submission is: the agent's user mappers as this worker's."""

from __future__ import annotations

from dataclasses import dataclass

from agent_worker.identity.mapping import Mapper, PluginMapper
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.jobbergate.agent_settings import LDAP, PREFIX, SINGLE_USER, AgentSettings, AgentSettingsRefused


@dataclass(frozen=True, slots=True)
class OneAccount:
    """A mapper that knows everybody as one account: the agent's `single-user-mapper`."""

    username: str
    name: str = SINGLE_USER

    def account(self, identity: str) -> str | None:
        """As `Mapper.account`."""
        return self.username


@dataclass(frozen=True, slots=True)
class InLowerCase:
    """A mapper whose accounts are written in lower case, as the agent's LDAP mapper does it."""

    mapper: Mapper

    @property
    def name(self) -> str:
        """As `Mapper.name`."""
        return self.mapper.name

    def account(self, identity: str) -> str | None:
        """As `Mapper.account`."""
        found = self.mapper.account(identity)
        return None if found is None else found.lower()


def owners_mapper(agent: AgentSettings, policy: IdentityPolicy, worker_mapper: Mapper | None) -> Mapper | None:
    """Who knows the accounts of submissions' owners; None where all are the policy's one account's.

    Args:
        agent: The agent's settings; its mapper comes first where it names one.
        policy: The worker's.
        worker_mapper: The worker's own mapper.

    Raises:
        AgentSettingsRefused: The agent's settings and the worker's contradict each other, or nobody knows the owners.
        MapperBroken: There is no such mapper, or it cannot work.
    """
    if policy.account is not None:
        if agent.mapper != SINGLE_USER:
            raise AgentSettingsRefused(
                f"all runs of this worker are {policy.account}'s, and the agent's setting names a mapper",
                where=f"{PREFIX}SLURM_USER_MAPPER",
                hint="set the worker's `policy` to owner, or unset this",
            )
        if agent.single_user not in (None, policy.account):
            raise AgentSettingsRefused(
                f"all runs of this worker are {policy.account}'s, and the agent's submissions {agent.single_user}'s",
                where=f"{PREFIX}SINGLE_USER_SUBMITTER",
                hint="set the worker's `account` to it, or unset this and X_SLURM_USER_NAME",
            )
        return None
    if agent.slurm_user_mapper is None and worker_mapper is not None:
        return worker_mapper
    if agent.mapper == SINGLE_USER:
        if agent.single_user is None:
            raise AgentSettingsRefused(
                "nobody knows the accounts of Jobbergate's users",
                where=f"{PREFIX}SLURM_USER_MAPPER",
                hint="name a mapper here, or in the worker's `mapper`; or SINGLE_USER_SUBMITTER",
            )
        return OneAccount(agent.single_user)
    return _ldap(agent) if agent.mapper == LDAP else PluginMapper(agent.mapper)


def _ldap(agent: AgentSettings) -> Mapper:
    missing = [
        f"{PREFIX}{name.upper()}"
        for name in ("ldap_domain", "ldap_password", "ldap_bind_dn", "ldap_search_base")
        if not getattr(agent, name)
    ]
    if missing:
        raise AgentSettingsRefused(f"{LDAP} needs {', '.join(missing)}", where=f"{PREFIX}SLURM_USER_MAPPER")
    try:
        from agent_worker.identity.ldap import LdapMapper, LdapSettings
    except ModuleNotFoundError as error:
        raise AgentSettingsRefused(
            f"{LDAP} is not installed: {error}", hint="install jobbergate-flows[worker]"
        ) from error
    assert agent.ldap_password is not None
    settings = LdapSettings(
        url=f"ldaps://{agent.ldap_domain}:{agent.ldap_port}",
        base=agent.ldap_search_base or "",
        attribute=agent.ldap_uid_attribute,
        bind_dn=agent.ldap_bind_dn,
        password=agent.ldap_password.get_secret_value(),
    )
    return InLowerCase(LdapMapper(settings))
