"""Files written for Jobbergate load unmodified, with jobbergate_cli not installed."""

from __future__ import annotations

import importlib.util

import pytest

from tests.applications.conftest import SHOWN, Make, parameters

NEW = """\
from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import (
    BooleanList, Checkbox, Confirm, Const, Directory, File, Integer, List, QuestionBase, Text,
)

class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data=None):
        questions = []
        questions.append(Text("foo", message="gimme the foo!", default="foo"))
        questions.append(List(variablename="partition", message="Choose one:", default="compute2",
                              choices=self.application_config["partitions"]))
        return questions
"""

OLD = """\
from jobbergate_cli.application_base import JobbergateApplicationBase
from jobbergate_cli import appform

class JobbergateApplication(JobbergateApplicationBase):

    def mainflow(self, data):
        questions = []
        questions.append(appform.Text(variablename="foo", message="gimme the foo!", default="foo"))
        questions.append(appform.List(
            variablename="partition",
            message="Choose slurm partition:",
            choices=self.application_config['partitions'],
            default="compute2",
        ))
        return questions
"""

OTHER_NAME = NEW.replace("class JobbergateApplication(", "class Study(")

WITH_SDK = """\
import jobbergate_cli.appform
import jobbergate_cli.subapps.applications.questions as q
from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase as Base

class Common(Base):
    def __init__(self, jobbergate_yaml, *, sdk=None):
        super().__init__(jobbergate_yaml, sdk=sdk)
        assert self.sdk is None
        assert self.jobbergate_config["default_template"] == "templates/job.sh.j2"

class JobbergateApplication(Common):
    def mainflow(self, data):
        assert data is self.jobbergate_config
        return [jobbergate_cli.appform.Text("foo", "Foo", default="foo"),
                q.List("partition", "P", choices=self.application_config["partitions"], default="compute2")]
"""


@pytest.mark.parametrize("code", [NEW, OLD, OTHER_NAME, WITH_SDK])
def test_imports_of_today_and_of_before(make: Make, code: str) -> None:
    application = make(
        code=code,
        script=SHOWN,
        config="jobbergate_config: {default_template: templates/job.sh.j2}\n"
        "application_config: {partitions: [compute1, compute2]}\n",
    )

    assert importlib.util.find_spec("jobbergate_cli") is None
    assert parameters(application) == {"foo": "foo", "partition": "compute2", "partitions": ["compute1", "compute2"]}


def test_the_base_class_finds_templates(make: Make) -> None:
    application = make(
        steps="""
            def mainflow(self, data):
                from pathlib import Path
                assert self.get_template_files() == JobbergateApplicationBase.find_templates(Path.cwd())
                assert JobbergateApplicationBase.find_templates(Path("/not/there")) == []
                data["x"] = [str(path) for path in self.get_template_files()]
        """,
        script=SHOWN,
        files={"templates/deep/in.txt.j2": ""},
    )

    assert parameters(application) == {"x": ["templates/deep/in.txt.j2", "templates/job.sh.j2"]}


@pytest.mark.parametrize(
    "place", ["jobbergate_cli.subapps.applications.application_helpers", "jobbergate_cli.jobberappslib"]
)
def test_the_helpers_of_applications_are_there(make: Make, place: str) -> None:
    application = make(
        steps=f"""
            def mainflow(self, data):
                from {place} import get_file_list, get_running_jobs
                return [Checkbox("files", "Files", choices=get_file_list(search_term="*.CSV"), default=["a.csv"]),
                        List("after", "After", choices=["none", *get_running_jobs()], default="none")]
        """,
        script=SHOWN,
        files={"a.csv": "1", "b.txt": "2"},
    )

    assert parameters(application) == {"files": ["a.csv"], "after": "none"}
