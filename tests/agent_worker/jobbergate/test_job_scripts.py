"""From Jobbergate's job script to what is submitted; what cannot be is told in the agent's words."""

from __future__ import annotations

import pytest

from agent_worker.jobbergate.job_scripts import (
    SubmissionRejected,
    check_directory,
    check_files,
    job_script,
    rejection,
)
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.jobbergate.models import FileType, JobScriptFile
from jobbergate_flows.slurm.errors import DirectoryRefused, FileRefused, OptionRefused, SubmissionRefused


def file(name: str, kind: str = "SUPPORT") -> JobScriptFile:
    return JobScriptFile(parent_id=1, filename=name, file_type=FileType(kind))


ENTRYPOINT = file("job.sh", "ENTRYPOINT")


def test_the_script_has_its_supporting_files_and_the_arguments_where_the_agent_puts_them() -> None:
    files = [ENTRYPOINT, file("data")]
    contents = {"job.sh": b"#!/bin/bash\n#SBATCH --time=5\necho hi\n", "data": "ä".encode()}
    script = job_script("hello", files, contents, ["--comment=why"])
    assert script.name == "hello"
    assert script.text == (
        "#!/bin/bash\n#SBATCH --time=5\n# Sbatch params injected at submission time\n#SBATCH --comment=why\n\necho hi\n"
    )
    assert script.files == {"data": "ä"}


@pytest.mark.parametrize("arguments", [(), ("--job-name=theirs",)])
def test_a_job_name_of_the_scripts_own_comes_first(arguments: tuple[str, ...]) -> None:
    text = b"#!/bin/bash\n" + (b"" if arguments else b"#SBATCH -J theirs\n") + b"true\n"
    assert job_script("hello", [ENTRYPOINT], {"job.sh": text}, arguments).name == "theirs"


@pytest.mark.parametrize(
    ("files", "write", "says"),
    [
        ([], True, "Could not find an executable script in retrieved job script data."),
        ([file("data")], True, "Could not find an executable script"),
        ([ENTRYPOINT, file("two.sh", "ENTRYPOINT")], True, "there are 2 executable scripts"),
        ([ENTRYPOINT, file("../data")], True, "'../data'"),
        ([ENTRYPOINT, file("..")], True, "'..'"),
        ([file("/etc/passwd", "ENTRYPOINT")], True, "'/etc/passwd'"),
        ([ENTRYPOINT, file("data")], False, "Set `WRITE_SUBMISSION_FILES` setting to `True`"),
    ],
)
def test_files_that_cannot_be_submitted_are_refused(files: list[JobScriptFile], write: bool, says: str) -> None:
    with pytest.raises(SubmissionRejected) as refused:
        check_files(files, write=write)
    assert says in str(refused.value)


def test_a_script_alone_needs_no_files_to_be_written() -> None:
    check_files([ENTRYPOINT], write=False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "no UTF-8 text"),
        (b"a\0b", "it holds NUL"),
        (b"x" * (5 * 2**20 + 1), "larger than 5 MiB"),
    ],
)
def test_what_is_no_text_or_too_large_is_refused_with_the_files_name(content: bytes, says: str) -> None:
    with pytest.raises(SubmissionRejected, match=says) as refused:
        job_script("hello", [ENTRYPOINT, file("data")], {"job.sh": b"true\n", "data": content})
    assert refused.value.where == "data"


def test_an_argument_that_is_none_is_refused() -> None:
    with pytest.raises(OptionRefused, match="no sbatch option"):
        job_script("hello", [ENTRYPOINT], {"job.sh": b"true\n"}, ["rm -rf /"])


@pytest.mark.parametrize("directory", ["work", "~/work", "", "./x"])
def test_a_directory_is_absolute(directory: str) -> None:
    with pytest.raises(DirectoryRefused, match="Execution directory must be an absolute path"):
        check_directory(directory)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DirectoryRefused("no"), "Execution directory is invalid -- DirectoryRefused: no"),
        (SubmissionRejected("no", where="a"), "Error processing job-script files -- SubmissionRejected: a: no"),
        (FileRefused("no"), "Error processing job-script files -- FileRefused: no"),
        (SubmissionRefused("no", hint="do"), "Failed to submit job to slurm -- SubmissionRefused: no (do)"),
    ],
)
def test_a_rejection_has_the_agents_words(error: JobbergateFlowsError, says: str) -> None:
    assert rejection(error) == says
