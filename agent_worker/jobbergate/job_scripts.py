"""From what Jobbergate has of a job submission to what is submitted. Pure: nothing here asks anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.jobbergate.calls import MAX_FILE_BYTES
from jobbergate_flows.jobbergate.models import FileType, JobScriptFile
from jobbergate_flows.slurm.directives import inject_sbatch_params, parse_directives
from jobbergate_flows.slurm.errors import DirectoryRefused, FileRefused

UNKNOWN_OWNER = "Username could not be resolved from owner email"
"""The agent's words for an owner whom the mapper does not know."""
_HEADER = "Sbatch params injected at submission time"
_DIRECTORY = "Execution directory is invalid"
_FILES = "Error processing job-script files"
_SLURM = "Failed to submit job to slurm"


class SubmissionRejected(JobbergateFlowsError):
    """A job submission cannot be submitted as it is in Jobbergate."""


def rejection(error: JobbergateFlowsError) -> str:
    """The report message of a submission that was refused, in the agent's words: `<context> -- <ExcType>: <msg>`."""
    match error:
        case DirectoryRefused():
            context = _DIRECTORY
        case SubmissionRejected() | FileRefused():
            context = _FILES
        case _:
            context = _SLURM
    return f"{context} -- {type(error).__name__}: {error}"


def check_directory(directory: str) -> None:
    """Look whether that can be an execution directory; whether it is there, its user's door says.

    Raises:
        DirectoryRefused
    """
    if not PurePosixPath(directory).is_absolute():
        raise DirectoryRefused("Execution directory must be an absolute path", where=directory)


def check_files(files: Sequence[JobScriptFile], *, write: bool = True) -> None:
    """Look whether a job script's files are ones that can be submitted, before they are fetched.

    Args:
        write: Whether supporting files may be written; the agent's WRITE_SUBMISSION_FILES.

    Raises:
        SubmissionRejected
    """
    entrypoints = [file for file in files if file.file_type is FileType.ENTRYPOINT]
    if not entrypoints:
        raise SubmissionRejected("Could not find an executable script in retrieved job script data.")
    if len(entrypoints) > 1:
        raise SubmissionRejected(f"there are {len(entrypoints)} executable scripts, and one is submitted")
    for file in files:
        name = file.filename
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise SubmissionRejected("a file's name must be one within the execution directory", where=f"{name!r}")
    if len(files) > 1 and not write:
        raise SubmissionRejected(
            "Job submission rejected. The submission has supporting files that can't be downloaded to the execution "
            "dir. Set `WRITE_SUBMISSION_FILES` setting to `True` to download the job script files to the execution dir."
        )


def job_script(
    name: str, files: Sequence[JobScriptFile], contents: Mapping[str, bytes], sbatch_arguments: Sequence[str] = ()
) -> JobScript:
    """The job script of a submission.

    Args:
        name: The submission's; a job name that the script itself has comes before it.
        files: As `check_files` took them.
        contents: File's name -> what it holds.
        sbatch_arguments: Injected into the script.

    Raises:
        SubmissionRejected: A file is no text, or too large.
        OptionRefused: One of the arguments is none.
    """
    texts = {file.filename: _text(file.filename, contents[file.filename]) for file in files}
    (entrypoint,) = [file.filename for file in files if file.file_type is FileType.ENTRYPOINT]
    text = inject_sbatch_params(texts.pop(entrypoint), sbatch_arguments, _HEADER)
    own = parse_directives(text).options.get("job-name")
    return JobScript(name=own or name or f"submission-{files[0].parent_id}", text=text, files=texts)


def _text(name: str, content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise SubmissionRejected(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB", where=name)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise SubmissionRejected(
            f"the file is no UTF-8 text: {error.reason} at byte {error.start}", where=name
        ) from error
    if "\0" in text:
        raise SubmissionRejected("the file is no text: it holds NUL", where=name)
    return text
