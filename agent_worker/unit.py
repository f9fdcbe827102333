"""The worker's systemd unit, as hardened as the way in which it acts for its users allows."""

from __future__ import annotations

import re
from typing import Literal

from jobbergate_flows.errors import JobbergateFlowsError

Mode = Literal["none", "sudo", "root"]

# With User= each of these implies NoNewPrivileges (systemd.exec(5)), with which sudo is no longer root.
NOT_WITH_SUDO = (
    "NoNewPrivileges", "DynamicUser", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock",
    "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RestrictAddressFamilies",
    "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter",
    "SystemCallLog",
)  # fmt: skip
# Each makes a view of the file system of its own, also for whom the worker acts as.
NOT_OVER_HOMES = (
    "InaccessiblePaths", "PrivateDevices", "PrivateMounts", "PrivateTmp", "PrivateUsers", "ProcSubset",
    "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "TemporaryFileSystem",
)  # fmt: skip

_CAPABILITIES = {
    "none": "",
    # sudo: to become the user, to pass signals on to them, for their limits (PAM), and for the kernel's audit log.
    "sudo": "CAP_SETUID CAP_SETGID CAP_KILL CAP_SYS_RESOURCE CAP_AUDIT_WRITE",
    "root": "CAP_SETUID CAP_SETGID CAP_KILL",
}
_SECCOMP = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
ProtectHostname=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
_LEFT_OUT = {
    "none": """\
# Left out: PrivateTmp, ProtectHome and other views of the file system, as jobs may run below any of their folders;
# MemoryDenyWriteExecute, which Python's ctypes does not bear.
""",
    "sudo": """\
# Left out, because with User= each implies NoNewPrivileges, with which sudo is no longer root:
# {not_with_sudo}.
# Left out, because the processes that act as the users inherit it, and must see what the users see:
# {not_over_homes}.
""",
    "root": """\
# Left out, because the processes that act as the users inherit it, and must see what the users see:
# {not_over_homes}.
# Left out as well: MemoryDenyWriteExecute, which Python's ctypes does not bear.
""",
}
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]*"


class UnitRefused(JobbergateFlowsError):
    """A word that would mean something else in a unit."""


def unit_text(*, account: str, pool: str, prefix: str, mode: Mode) -> str:
    """The unit's text.

    Args:
        account: The account that the worker runs as; not looked at for the mode `root`.
        pool: The work pool that it serves.
        prefix: The virtual environment in which it is installed; `bin/prefect` is in there.
        mode: How it acts for its users: `none`, as itself; `sudo`; `root`, dropping its privileges.

    Raises:
        UnitRefused: One of them has blanks, `%` or other letters that systemd gives a meaning to.
    """
    letters = "letters, digits and . _ + - only"
    for name, value, pattern, hint in (
        ("account", account, _WORD, f"use {letters}"),
        ("pool", pool, _WORD, f"use {letters}"),
        ("prefix", prefix, r"/[A-Za-z0-9_./+@-]*", f"write it from / on, with {letters}"),
    ):
        if not re.fullmatch(pattern, value):
            raise UnitRefused(f"{name} {value!a} cannot be written into a unit", hint=hint)
    user = "" if mode == "root" else f"User={account}\n"
    # sbatch hands its own on to the job, and without a deputy sbatch is the worker's child.
    umask = "" if mode == "none" else "UMask=0077\n"
    seccomp = "" if mode == "sudo" else _SECCOMP
    left_out = _LEFT_OUT[mode].format(not_with_sudo=_wrapped(NOT_WITH_SUDO), not_over_homes=_wrapped(NOT_OVER_HOMES))
    return f"""\
[Unit]
Description=jobbergate-flows worker of the work pool {pool}
Wants=network-online.target
After=network-online.target nss-user-lookup.target munge.service

[Service]
{user}# PREFECT_API_URL, PREFECT_API_KEY and the like; of root's, mode 0600: systemd reads it before it is anybody else.
EnvironmentFile=-/etc/jobbergate-flows/environment
Environment=PREFECT_HOME=%S/jobbergate-flows/prefect JOBBERGATE_FLOWS_STATE_DIR=%S/jobbergate-flows
ExecStart={prefix.rstrip("/")}/bin/prefect worker start --pool {pool} --type jobbergate-slurm --with-healthcheck
WorkingDirectory=/
StateDirectory=jobbergate-flows
StateDirectoryMode=0700
Restart=always
RestartSec=5
# A submission that is under way ends by itself; what acts as a user ends with the worker.
KillMode=process

{umask}CapabilityBoundingSet={_CAPABILITIES[mode]}
AmbientCapabilities=
DevicePolicy=closed
KeyringMode=private
TasksMax=4096
{seccomp}{left_out}# No Limit...= here: a job gets those of whoever calls sbatch (PropagateResourceLimits).

[Install]
WantedBy=multi-user.target
"""


def _wrapped(names: tuple[str, ...]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > 100:
            lines.append("")
        lines[-1] += f"{name}, "
    return "\n# ".join(line.strip() for line in lines).rstrip(",")
