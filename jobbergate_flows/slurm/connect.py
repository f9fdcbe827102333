"""Which cluster this machine reaches: Slurm's, or its own processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import platformdirs

from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.command_cluster import CommandCluster
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import ClusterUnreachable
from jobbergate_flows.slurm.local_cluster import LocalCluster

Access = Literal["auto", "slurm", "local"]

_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_COMMANDS = ("sbatch", "squeue", "sacct", "scancel")


def connect(access: str = "auto", *, name: str | None = None, slurm_conf: str | None = None) -> Cluster:
    """The cluster of this machine, acting as the own account. Slurm itself is not asked yet.

    Args:
        access: `slurm`: Slurm's commands on this host. `local`: processes of this machine, kept below
            `state_directory()`. `auto`: Slurm where its commands and its configuration are, whether or not its
            controller answers; else local.
        name: The cluster's name; otherwise `ClusterName` of slurm.conf, or `local`.
        slurm_conf: Path of slurm.conf; otherwise `SLURM_CONF`, or the system's own.

    Raises:
        ClusterUnreachable: `access` is `slurm` and this host has no commands of Slurm's or does not know its cluster's
            name; or slurm.conf is named and is not there.
        ValueError: `access` is none of the three.
    """
    if access not in ("auto", "slurm", "local"):
        raise ValueError(f"{access!r} is no way to reach a cluster: auto, slurm or local")
    configuration = _configuration(slurm_conf) if access != "local" else None
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if access == "local" or (access == "auto" and (missing or configuration is None)):
        return LocalCluster(name=name or "local", root=state_directory() / "local")
    if missing:
        raise ClusterUnreachable(
            f"this host has no {', '.join(missing)}",
            hint="install Slurm's commands, put them on PATH, or use the local cluster",
        )
    return CommandCluster(name or _cluster_name(configuration), OwnAccountDoor(), slurm_conf=slurm_conf)


def state_directory() -> Path:
    """Where this account's own state is kept: `JOBBERGATE_FLOWS_STATE_DIR`, or the user's state directory."""
    given = os.environ.get("JOBBERGATE_FLOWS_STATE_DIR")
    return Path(given) if given else platformdirs.user_state_path("jobbergate-flows")


def _configuration(given: str | None) -> Path | None:
    named = given or os.environ.get("SLURM_CONF")
    if named and not Path(named).is_file():
        raise ClusterUnreachable(
            f"there is no {named}", hint="mend or unset SLURM_CONF; without it the system's own is used"
        )
    candidates = [named] if named else _CONFIGURATIONS
    return next((Path(path) for path in candidates if Path(path).is_file()), None)


def _cluster_name(configuration: Path | None) -> str:
    # Without a file ("configless") only the controller knows; it is asked as well where the file includes others.
    text = configuration.read_text(errors="replace") if configuration else ""
    return _named_in(text) or _named_in(_configuration_by_controller()) or _unnamed()


def _named_in(text: str) -> str | None:
    found = re.search(r"^\s*ClusterName\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


def _configuration_by_controller() -> str:
    try:
        asked = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterUnreachable(
            f"Slurm does not say its cluster's name: {error}", hint="set SLURM_CONF, or name the cluster"
        ) from error
    return asked.stdout


def _unnamed() -> str:
    raise ClusterUnreachable("Slurm does not say its cluster's name", hint="set SLURM_CONF, or name the cluster")
