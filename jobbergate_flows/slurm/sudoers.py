"""What a site installs so that an unprivileged worker may act for its users: the deputy, and sudo's rules for it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.deputy_door import PROGRAM


class NotInstallable(JobbergateFlowsError):
    """What was asked for would be a hole, or cannot be written."""


def sudoers_text(worker_account: str, group: str, deputy_path: str) -> str:
    """The file for `/etc/sudoers.d`: one account may start one program, without arguments, as the members of one group.

    Args:
        worker_account: The account of the worker.
        group: Whose members it acts for.
        deputy_path: Where the deputy is installed.

    Raises:
        NotInstallable: A name or the path holds what has a meaning of its own in the file.
    """
    for name, what in ((worker_account, "an account"), (group, "a group")):
        if not _NAME.fullmatch(name) or name == "ALL":
            raise NotInstallable(
                f"{name!r} cannot be written as {what} into a sudoers file", hint="use letters, digits and . _ - only"
            )
    if not _PATH.fullmatch(deputy_path) or ".." in deputy_path.split("/"):
        raise NotInstallable(
            f"{deputy_path!r} cannot be written as a path into a sudoers file",
            hint="write it from / on, with letters, digits and . _ - only",
        )
    return _TEXT.format(worker=worker_account, group=group, deputy=deputy_path)


def install_deputy(target: str | Path) -> str:
    """Copy the deputy to where sudo starts it: root's, mode 0755, the very bytes of this package; return their digest.

    Raises:
        NotInstallable: This is not root, or others could change what lies there.
    """
    path = Path(target)
    if os.geteuid() != 0:
        raise NotInstallable("only root can install the deputy", where=str(path), hint="run this as root")
    if not path.is_absolute():
        raise NotInstallable("this is no absolute path", where=str(path), hint="write it from / on")
    content = PROGRAM.read_bytes()
    try:
        deputy.check_trusted(str(path.parent), owners=(0,))
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except deputy.Refused as error:
        raise NotInstallable(error.message, where=error.where, hint=error.hint) from error
    except OSError as error:
        raise NotInstallable(f"cannot be written: {error.strerror}", where=str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchown(handle, 0, 0)
            os.fchmod(handle, 0o755)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise NotInstallable(f"cannot be written: {error.strerror}", where=str(path)) from error
    return deputy.digest_of(content)


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9_./-]{1,500}", re.ASCII)
_TEXT = """\
# Printed by `jobbergate-flows worker sudoers`; put it into /etc/sudoers.d with mode 0440, and check it: visudo -cf FILE
# {worker} starts the deputy, which takes no arguments, as members of the group {group}, never as root.
Defaults!{deputy} env_reset, !setenv, !requiretty, !use_pty, closefrom=3, umask=0077
{worker} ALL=(%{group}, !root, !#0) NOPASSWD: NOSETENV: {deputy} ""
"""
