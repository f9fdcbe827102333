"""What stands in for jobbergate_cli, so that files written for Jobbergate load where it is not installed."""

from __future__ import annotations

import fnmatch
import getpass
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from jobbergate_flows.applications.child import questions


class JobbergateApplicationBase:
    """The base of applications, as Jobbergate has it."""

    def __init__(self, jobbergate_yaml: dict[str, Any], *, sdk: Any = None) -> None:
        self.jobbergate_config = jobbergate_yaml["jobbergate_config"]
        self.application_config = jobbergate_yaml.get("application_config", {})
        self.sdk = sdk

    def mainflow(self, data: dict[str, Any]) -> list[questions.QuestionBase]:
        """The first questions."""
        raise NotImplementedError("the application class has no mainflow(self, data)")

    @staticmethod
    def find_templates(application_path: str | os.PathLike[str]) -> list[Path]:
        """The files below `templates`, relative to the application's folder, ordered."""
        folder = Path(application_path)
        return sorted(path.relative_to(folder) for path in folder.glob("templates/**/*") if path.is_file())

    def get_template_files(self) -> list[Path]:
        """The application's own templates."""
        return self.find_templates(Path.cwd())


def get_running_jobs(user_only: bool = True) -> list[str]:
    """`<job id> <job name>` of the jobs that squeue lists; none where it cannot be asked."""
    command = ["squeue", "--format=%.8A %j", "--noheader"]
    if user_only:
        command.append(f"--user={getpass.getuser()}")
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in listed.splitlines()]


def get_file_list(path: str | os.PathLike[str] | None = None, search_term: str = "*.*") -> list[str]:
    """The names of a directory's files that match a pattern in any case, the newest first."""
    pattern = re.compile(fnmatch.translate(search_term), re.IGNORECASE)
    found = [entry for entry in Path(path or ".").iterdir() if entry.is_file() and pattern.match(entry.name)]
    return [entry.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)]


def install() -> None:
    """Put the modules that applications import into `sys.modules`, under their names of today and of before."""
    kinds = {
        kind.__name__: kind
        for kind in vars(questions).values()
        if isinstance(kind, type) and issubclass(kind, questions.QuestionBase)
    }
    base = {"JobbergateApplicationBase": JobbergateApplicationBase}
    helpers = {"get_running_jobs": get_running_jobs, "get_file_list": get_file_list}
    modules: dict[str, dict[str, Any]] = {
        "jobbergate_cli": {},
        "jobbergate_cli.application_base": base,
        "jobbergate_cli.appform": kinds,
        "jobbergate_cli.jobberappslib": helpers,
        "jobbergate_cli.subapps": {},
        "jobbergate_cli.subapps.applications": {},
        "jobbergate_cli.subapps.applications.application_base": base,
        "jobbergate_cli.subapps.applications.application_helpers": helpers,
        "jobbergate_cli.subapps.applications.questions": kinds,
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(members, __path__=[])
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
