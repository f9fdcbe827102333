"""The job script of an ordinary flow: set up, read the environment from its file, run the flow. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from jobbergate_flows.errors import JobbergateFlowsError


def flow_job_script(
    *,
    command: str,
    environment_file: str,
    modules: Sequence[str] = (),
    setup_commands: Sequence[str] = (),
    working_directory: str | None = None,
) -> str:
    """The script's text. It holds no value of the environment, which is read from `environment_file`."""
    # Set-up commands may change the directory.
    lines = ["#!/bin/bash", f"environment_file=$(realpath -- {shlex.quote(environment_file)}) || exit 73"]
    if modules:
        # The module command is a shell function of login shells.
        lines.append('[ -n "$(type -t module)" ] || . /etc/profile')
        lines += [f"module load {shlex.quote(module)} || exit 71" for module in modules]
    lines += list(setup_commands)
    if working_directory:
        lines.append(f"cd -- {shlex.quote(working_directory)} || exit 72")
    lines += ["set -a", '. "$environment_file" || exit 73', "set +a", f"exec {command}"]
    return "\n".join(lines) + "\n"


def environment_text(environment: Mapping[str, str | None]) -> str:
    """A file of shell assignments for `.`.

    Raises:
        JobbergateFlowsError: A name is none that a shell takes.
    """
    lines = []
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobbergateFlowsError(
                f"{name!r} is no name of an environment variable",
                where="job variable env",
                hint="use letters, digits and underscores",
            )
        if value is not None:
            lines.append(f"{name}={shlex.quote(value)}")
    return "\n".join(lines) + "\n"
