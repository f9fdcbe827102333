"""Applications in the real Jobbergate API: published there, read from there, and read by what published them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobbergate_flows.applications import Application, LoadingError
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.client import JobbergateClient, JobbergateResponseError
from jobbergate_flows.jobbergate.models import FileType
from tests.cluster.jobbergate_api import PERSON, READER, JobbergateApi
from tests.jobbergate.test_client import connect

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith("_"))
WORKFLOW = b"""
from jobbergate_cli.subapps.applications.application_base import JobbergateApplicationBase
from jobbergate_cli.subapps.applications.questions import Text
class JobbergateApplication(JobbergateApplicationBase):
    def mainflow(self, data):
        return [Text("word", "Which word?", default="hello")]
"""
CONFIG = b"jobbergate_config:\n  default_template: job.sh.j2\napplication_config: {}\n"
TEMPLATE = b"#!/bin/sh\necho {{ data.word }}\n"


@pytest.fixture(scope="module")
def person(jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobbergateClient]:
    with connect(jobbergate_api, PERSON, tmp_path_factory.mktemp("tokens")) as client:
        yield client


def application(**files: bytes) -> Application:
    given = {"jobbergate.py": WORKFLOW, "jobbergate.yaml": CONFIG, "templates/job.sh.j2": TEMPLATE}
    return Application.from_files(given | files, name="small", source="here")


@pytest.mark.parametrize("name", FOLDERS)
def test_what_was_published_renders_the_same(person: JobbergateClient, name: str) -> None:
    ours = Application.load(EXAMPLES / name)
    entry = ours.publish_to_jobbergate(person, identifier=f"same-{name}")
    assert (entry.identifier, entry.name) == (f"same-{name}", name)
    theirs = Application.from_jobbergate(person, f"same-{name}")
    assert theirs.describe().form == ours.describe().form
    mine, read = ours.render(), theirs.render()
    assert (read.text, dict(read.files), read.result_files) == (mine.text, dict(mine.files), mine.result_files)


async def test_it_goes_with_an_event_loop_too(jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
    async with connect(jobbergate_api, PERSON, tmp_path) as client:
        await application().apublish_to_jobbergate(client, identifier="in-a-loop")
        found = await Application.afrom_jobbergate(client, "in-a-loop")
    assert found.render({"word": "hi"}).text == "#!/bin/sh\necho hi\n"


def test_publishing_again_changes_the_entry_and_leaves_nothing_of_the_old(person: JobbergateClient) -> None:
    first = application(**{"templates/old.j2": b"x"}).publish_to_jobbergate(person, identifier="again")
    changed = application(
        **{"templates/job.sh.j2": b"#!/bin/sh\necho new\n", "README.md": b"# Title\n\nWhat it\0 does.\n"}
    )
    second = changed.publish_to_jobbergate(person, identifier="again", name="Another name")
    assert (second.id, second.name, second.description) == (first.id, "Another name", "What it� does.")
    assert [file.filename for file in second.template_files or ()] == ["job.sh.j2"]
    found = Application.from_jobbergate(person, second.id)
    assert found.description == "What it� does."
    assert found.render().text == "#!/bin/sh\necho new\n"


def test_one_without_a_word_on_its_entrypoint_is_read_by_what_the_api_knows(person: JobbergateClient) -> None:
    made = person.send(calls.create_application("Untold", identifier="untold"))
    person.send(calls.upload_template(made.id, FileType.ENTRYPOINT, "a.sh.j2", TEMPLATE))
    person.send(calls.upload_template(made.id, FileType.SUPPORT, "b.j2", b"{{ data.word }}\n"))
    # As the released command line sends what a file does not say.
    config = {"default_template": None, "supporting_files": None, "template_files": None}
    person.send(calls.upload_workflow(made.id, WORKFLOW, config))
    found = Application.from_jobbergate(person, "untold")
    assert (found.entrypoint, dict(found.supporting)) == ("templates/a.sh.j2", {"templates/b.j2": "b"})


def test_one_without_questions_says_what_is_missing(person: JobbergateClient) -> None:
    made = person.send(calls.create_application("Bare", identifier="bare"))
    with pytest.raises(LoadingError, match=r"bare has no jobbergate\.py in Jobbergate"):
        Application.from_jobbergate(person, made.id)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../../out.j2", b"x", r"'templates/\.\./\.\./out\.j2', which is no file of an application"),
        ("more.j2", b"x" * (3 << 20), "larger than 5 MiB"),
    ],
)
def test_what_could_not_be_deployed_is_not_read(
    person: JobbergateClient, name: str, content: bytes, words: str
) -> None:
    config = {"default_template": "job.sh.j2", "supporting_files": []}
    made = person.send(calls.create_application("Foreign"))
    person.send(calls.upload_workflow(made.id, WORKFLOW, config))
    person.send(calls.upload_template(made.id, FileType.ENTRYPOINT, "job.sh.j2", TEMPLATE))
    for number in range(len(content) >> 20 or 1):
        file = name if number == 0 else f"{number}{name}"
        person.send(calls.upload_template(made.id, FileType.SUPPORT, file, content))
    with pytest.raises(LoadingError, match=words):
        Application.from_jobbergate(person, made.id)


def test_one_that_is_not_there_is_named_in_the_apis_words(person: JobbergateClient) -> None:
    with pytest.raises(JobbergateResponseError, match="404"):
        Application.from_jobbergate(person, "nothing-of-the-kind")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data.csv": b"1"}, r"data\.csv: the file is no template, and Jobbergate keeps no other files"),
        ({"more/job.sh.j2": b"x"}, r"the file has the name of another"),
        ({"templates/unused.j2": b"\xff"}, r"unused\.j2: the file is no UTF-8 text"),
    ],
)
def test_what_jobbergate_has_no_place_for_is_refused_before_anything_is_made(
    person: JobbergateClient, files: dict[str, bytes], words: str
) -> None:
    with pytest.raises(LoadingError, match=words):
        application(**files).publish_to_jobbergate(person, identifier="refused")
    with pytest.raises(JobbergateResponseError, match="404"):
        person.send(calls.get_application("refused"))


def test_nothing_half_done_stays_behind(person: JobbergateClient) -> None:
    # One that we read is one that it takes: so this one is changed behind our back.
    bad = replace(application(), files={**application().files, "templates/z.j2": b"{% if %}"})
    with pytest.raises(JobbergateResponseError):
        bad.publish_to_jobbergate(person, identifier="half")
    with pytest.raises(JobbergateResponseError, match="404"):
        person.send(calls.get_application("half"))


def test_why_it_cannot_be_filled_is_told_also_where_nobody_may_delete(
    person: JobbergateClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = calls.delete_application(10**6)
    monkeypatch.setattr(calls, "delete_application", lambda _: refused)
    bad = replace(application(), files={**application().files, "templates/z.j2": b"{% if %}"})
    with pytest.raises(JobbergateResponseError, match=r"PUT .*/upload/template/SUPPORT"):
        bad.publish_to_jobbergate(person, identifier="half-kept")


def test_who_may_not_is_told(jobbergate_api: JobbergateApi, tmp_path: Path) -> None:
    with connect(jobbergate_api, READER, tmp_path) as reader, pytest.raises(JobbergateResponseError, match="403"):
        application().publish_to_jobbergate(reader)
