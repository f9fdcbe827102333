"""A new application to begin with: small, and working."""

from __future__ import annotations

from pathlib import Path

from jobbergate_flows.applications.errors import LoadingError

_FILES = {
    "jobbergate.yaml": """\
jobbergate_config:
  default_template: templates/job.sh.j2
  supporting_files: []

application_config:
  greeting: Hello
""",
    "jobbergate.py": '''\
"""The questions of this application."""

from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import Confirm, Integer, Text


class JobbergateApplication(JobbergateApplicationBase):
    """Asks whom to greet, and how often."""

    def mainflow(self, data):
        """The first questions; name the method with the next ones in data["nextworkflow"]."""
        return [
            Text("name", message="Whom to greet", default="world"),
            Integer("times", message="How often", minval=1, maxval=10, default=3),
            Confirm("slowly", message="With a second between", default=False),
        ]
''',
    "templates/job.sh.j2": """\
#!/bin/bash
#SBATCH --job-name={{ data.job_name | default("greeting") }}
#SBATCH --time=5
#SBATCH --ntasks=1

for number in $(seq {{ data.times }}); do
    echo "{{ data.greeting }}, {{ data.name }} ($number of {{ data.times }}) on $(hostname)"
{% if data.slowly %}
    sleep 1
{% endif %}
done
""",
    "README.md": """\
# {name}

Greets somebody, some times. Its questions are in `jobbergate.py`, its job script is `templates/job.sh.j2`.
""",
}


def create_application(directory: str | Path, name: str | None = None) -> Path:
    """Write a small application into a new or empty folder, and return the folder.

    Raises:
        LoadingError: The folder holds something, or cannot be written.
    """
    folder = Path(directory).expanduser()
    try:
        if folder.exists() and not folder.is_dir():
            raise LoadingError("it is a file, not a folder", where=str(folder), hint="name a new folder")
        if folder.exists() and any(folder.iterdir()):
            raise LoadingError("the folder is not empty", where=str(folder), hint="name a new one")
        for path, text in _FILES.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("{name}", name or folder.absolute().name), encoding="utf-8")
    except OSError as error:
        raise LoadingError(
            f"it cannot be written: {error.strerror}",
            where=str(error.filename or folder),
            hint="name a folder that you may write to",
        ) from error
    return folder
