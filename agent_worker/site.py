"""What a site has set, made into the objects that the worker works with."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path

from agent_worker.admission import Rules
from agent_worker.identity.audit import AuditLog
from agent_worker.identity.bindings import BindingsFile
from agent_worker.identity.mapping import Mapper, PluginMapper
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.settings import WorkerSettings
from jobbergate_flows.applications import child
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm.accounts import AccountRules
from jobbergate_flows.slurm.deputy_door import INSTALLED, PROGRAM, DeputyDoor, Root, Sudo, Way

_RENDERER = Path(child.__file__).parent / "program.py"
_AUDIT = "/dev/log"


class WorkerRefused(JobbergateFlowsError):
    """The worker cannot start as it is set up."""


def rules_of(settings: WorkerSettings) -> Rules:
    """Who decides about runs.

    Raises:
        WorkerRefused: Settings contradict each other.
        MapperBroken: There is no such mapper, or it cannot work.
    """
    own = settings.policy == "single-user"
    if not own and settings.account is not None:
        raise WorkerRefused(
            "with the policy owner there is no one account", hint="unset `account`, or set the policy to single-user"
        )
    if settings.acting == "none" and not own:
        raise WorkerRefused(
            "the policy owner needs a worker that acts for others", hint="set `acting` to sudo, or to root"
        )
    policy = IdentityPolicy(settings.policy, _account(settings) if own else None, settings.consent)
    decides = settings.acting != "none" or settings.consent or not own
    return Rules(
        policy=policy,
        bindings=None if own else BindingsFile(Path(settings.bindings)),
        mapper=None if own else _mapper(settings),
        word=settings.mapper_word,
        audit=AuditLog(settings.audit or _AUDIT) if decides or settings.audit else None,
        consent_seconds=settings.consent_seconds,
        poll_seconds=settings.decision_poll_seconds,
    )


def door_opener(settings: WorkerSettings) -> Callable[[str], DeputyDoor] | None:
    """What makes the door to an account; None for a worker that acts as its own.

    Raises:
        WorkerRefused: The worker is not root, and should act as root does.
    """
    if settings.acting == "none":
        return None
    if settings.acting == "root" and os.geteuid() != 0:
        raise WorkerRefused("the worker is not root", hint="set `acting` to sudo, or let root start it")
    python = settings.deputy_python or sys.executable
    way: Way = (
        Sudo(settings.deputy or INSTALLED)
        if settings.acting == "sudo"
        else Root(python, settings.deputy or str(PROGRAM))
    )
    accounts = AccountRules(settings.min_uid, tuple(filter(None, settings.groups.replace(" ", "").split(","))))

    def open_door(account: str) -> DeputyDoor:
        return DeputyDoor(
            account,
            way,
            rules=accounts,
            umask=settings.umask,
            slurm_conf=settings.slurm_conf or os.environ.get("SLURM_CONF"),
            renderer=(python, str(_RENDERER)),
        )

    return open_door


def _account(settings: WorkerSettings) -> str:
    return settings.account or pwd.getpwuid(os.geteuid()).pw_name


def _mapper(settings: WorkerSettings) -> Mapper | None:
    if settings.mapper != "ldap":
        return None if settings.mapper is None else PluginMapper(settings.mapper)
    if settings.ldap_url is None:
        raise WorkerRefused("the mapper ldap has no directory to ask", hint="set `ldap_url`")
    try:
        from agent_worker.identity.ldap import LdapMapper, LdapSettings
    except ModuleNotFoundError as error:
        raise WorkerRefused(
            f"the mapper ldap is not installed: {error}", hint="install jobbergate-flows[worker]"
        ) from error
    return LdapMapper(
        LdapSettings(
            url=settings.ldap_url,
            base=settings.ldap_base,
            filter=settings.ldap_filter,
            attribute=settings.ldap_attribute,
            bind_dn=settings.ldap_bind_dn,
            password_file=Path(settings.ldap_password_file) if settings.ldap_password_file else None,
            start_tls=settings.ldap_start_tls,
            ca_file=Path(settings.ldap_ca_file) if settings.ldap_ca_file else None,
        )
    )
