"""Small applications, written for one test each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from jobbergate_flows.applications import Application

IMPORTS = """\
from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import *
"""

CONFIG = """\
jobbergate_config:
  default_template: templates/job.sh.j2
application_config: {}
"""

SHOWN = "{{ data | tojson }}"

Write = Callable[..., Path]
Make = Callable[..., Application]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an application into a folder.

    `questions` are Python expressions, asked by `mainflow`; `steps` are the methods of the class instead, and `code`
    is the whole of jobbergate.py instead. `script` is what the template has after its first line.
    """

    def write(
        questions: str = "",
        *,
        steps: str | None = None,
        code: str | None = None,
        script: str = "",
        config: str = CONFIG,
        files: Mapping[str, str | bytes | None] | None = None,
    ) -> Path:
        body = dedent(steps) if steps else f"def mainflow(self, data):\n    return [{questions}]\n"
        own = f"{IMPORTS}\nclass JobbergateApplication(JobbergateApplicationBase):\n{indent(body, '    ')}"
        texts: dict[str, str | bytes | None] = {
            "jobbergate.yaml": config,
            "jobbergate.py": own if code is None else dedent(code),
            "templates/job.sh.j2": f"#!/bin/bash\n{script}\n",
            **(files or {}),
        }
        folder = tmp_path / "study"
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_bytes(text.encode() if isinstance(text, str) else text)
        return folder

    return write


@pytest.fixture
def make(write: Write) -> Make:
    """Writes an application as `write` does, and loads it."""
    return lambda *args, **kwargs: Application.from_path(write(*args, **kwargs))


def parameters(application: Application, answers: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """What an application whose script is `SHOWN` renders with: its final parameters, without its configuration."""
    last = application.render(answers, **options).text.splitlines()[-1]
    shown: dict[str, Any] = json.loads(last)
    return {name: value for name, value in shown.items() if name != "default_template"}
