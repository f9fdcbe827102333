"""The environment of Slurm's commands: built from nothing.

`SLURM_*`, `SBATCH_*`, `SQUEUE_FORMAT` and `SACCT_FORMAT` of the caller's environment would change what the commands do
and print, and some beat `#SBATCH` lines.
"""

from __future__ import annotations

import os
import pwd

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def clean_environment(uid: int | None = None, *, slurm_conf: str | None = None, query: bool = False) -> dict[str, str]:
    """The environment for a command.

    Args:
        uid: Whose; otherwise the own effective user's.
        slurm_conf: `SLURM_CONF`; otherwise taken over where it is set.
        query: For commands whose output is parsed: times as seconds since the epoch, no translations.
    """
    account = pwd.getpwuid(os.geteuid() if uid is None else uid)
    environment = {
        "PATH": os.environ.get("PATH", _PATH),
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LC_ALL": "C" if query else "C.UTF-8",
    }
    if conf := slurm_conf or os.environ.get("SLURM_CONF"):
        environment["SLURM_CONF"] = conf
    if query:
        environment["SLURM_TIME_FORMAT"] = "%s"
        # Otherwise the list of an array's pending tasks is cut off after 64 characters.
        environment["SLURM_BITSTR_LEN"] = "0"
    return environment
