"""The installed command, and small applications to use it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "jobbergate-flows")
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run(
    *arguments: str | Path, stdin: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Ended:
    """Run the command without a terminal."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=240,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command without a terminal."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def application(folder: Path, script: str, questions: str = "", supporting: Mapping[str, str] | None = None) -> Path:
    """Write an application: the body of its script, and the questions as Python expressions."""
    (folder / "templates").mkdir(parents=True)
    listed = "".join(f"\n    - templates/{name}.j2" for name in supporting or {})
    (folder / "jobbergate.yaml").write_text(
        "jobbergate_config:\n  default_template: templates/job.sh.j2\n  template_files:\n    - templates/job.sh.j2\n"
        + (f"  supporting_files:{listed}\n" if listed else "")
        + "application_config: {}\n"
    )
    (folder / "jobbergate.py").write_text(
        "from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase\n"
        "from jobbergate_cli.subapps.applications.questions import *\n"
        "class JobbergateApplication(JobbergateApplicationBase):\n"
        f"    def mainflow(self, data):\n        return [{questions}]\n"
    )
    (folder / "templates" / "job.sh.j2").write_text(f"#!/bin/bash\n#SBATCH --time=1\n{script}\n")
    for name, text in (supporting or {}).items():
        (folder / "templates" / f"{name}.j2").write_text(text)
    return folder
