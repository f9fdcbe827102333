"""Applications that lie in a Jobbergate API: read as one of ours, and published there.

Jobbergate keeps an application in pieces: its `jobbergate.py`, the two maps of its `jobbergate.yaml`, and its templates
by their last names, without folders. Nothing else of an application has a place there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath
from typing import NoReturn

import yaml

from jobbergate_flows.applications.application import READMES, WORKFLOW, Application
from jobbergate_flows.applications.config import FILE, TEMPLATE_SUFFIXES
from jobbergate_flows.applications.errors import LoadingError
from jobbergate_flows.applications.sources import check_files
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.calls import MAX_FILE_BYTES, MAX_TEXT, Program
from jobbergate_flows.jobbergate.errors import JobbergateApiError, JobbergateResponseError
from jobbergate_flows.jobbergate.models import FileType, JobScriptTemplateDetails


def load(identifier: int | str, base_url: str) -> Program[Application]:
    """An application of an API, by its id or identifier.

    Args:
        base_url: The API's, for its source.

    Raises:
        LoadingError: It is none that can be run: no `jobbergate.py`, no template, or what `Application.load` refuses.
        JobbergateApiError: It cannot be had.
    """
    found: JobScriptTemplateDetails = yield calls.get_application(identifier)
    source = f"{base_url}/jobbergate/job-script-templates/{found.id}"
    if not found.workflow_files:
        raise LoadingError(
            f"the application {found.identifier or found.id} has no {WORKFLOW} in Jobbergate",
            where=source,
            hint="upload one there: it says what is asked",
        )
    files: dict[str, bytes] = {WORKFLOW: (yield calls.download_workflow(found.id)), FILE: _config(found)}
    for template in found.template_files or ():
        files[f"templates/{template.filename}"] = yield calls.download_template(found.id, template.filename)
        # After each: nobody fetches hundreds of large ones to refuse them then.
        check_files(files, source)
    if found.description:
        files[READMES[0]] = f"{found.description.strip()}\n".encode()
    return Application.from_files(files, name=found.identifier or found.name, source=source)


def publish(
    application: Application, *, identifier: str | None = None, name: str | None = None
) -> Program[JobScriptTemplateDetails]:
    """Put an application into an API: a new entry, or another content of the one with that identifier.

    Of its README the first paragraph becomes the description. An entry that was made here and cannot be filled is
    removed again.

    Args:
        identifier: Otherwise the application's name.
        name: Otherwise the application's name too.

    Raises:
        LoadingError: It holds what Jobbergate has no place for.
        JobbergateApiError: It is somebody else's, or the API cannot be reached.
    """
    identifier = identifier or application.name
    templates = _templates(application)
    config = application.config.as_read()
    fields = {
        "name": name or application.name,
        "description": _description(application),
        "template_vars": config["application_config"],
    }
    there: JobScriptTemplateDetails | None = None
    try:
        there = yield calls.get_application(identifier)
    except JobbergateResponseError as error:
        if error.status != 404:
            raise
    entry: JobScriptTemplateDetails = (
        (yield calls.create_application(identifier=identifier, **fields))
        if there is None
        else (yield calls.update_application(there.id, **fields))
    )
    try:
        for filename, (kind, content) in templates.items():
            yield calls.upload_template(entry.id, kind, filename, content)
        yield calls.upload_workflow(entry.id, application.files[WORKFLOW], config["jobbergate_config"])
        for old in (there.template_files if there is not None else None) or ():
            if old.filename not in templates:
                yield calls.delete_template(entry.id, old.filename)
    except JobbergateApiError:
        if there is None:
            # Why it cannot be filled is what counts, also where nobody may delete it.
            with suppress(JobbergateApiError):
                yield calls.delete_application(entry.id)
        raise
    published: JobScriptTemplateDetails = yield calls.get_application(entry.id)
    return published


def _config(found: JobScriptTemplateDetails) -> bytes:
    """`jobbergate.yaml` again. What the API alone knows, which template is the entrypoint, is added."""
    config = {
        name: value
        for name, value in ((found.workflow_files or ())[0].runtime_config or {}).items()
        # The released command line sends null for what a file does not say.
        if value is not None
    }
    kinds = {template.filename: template.file_type for template in found.template_files or ()}
    if "default_template" not in config and "supporting_files" not in config:
        entrypoints = [filename for filename, kind in kinds.items() if kind is FileType.ENTRYPOINT]
        if len(entrypoints) == 1:
            config["default_template"] = entrypoints[0]
        config["supporting_files"] = [filename for filename, kind in kinds.items() if kind is FileType.SUPPORT]
    both = {"jobbergate_config": config, "application_config": dict(found.template_vars or {})}
    return yaml.safe_dump(both, sort_keys=False, allow_unicode=True).encode()


def _templates(application: Application) -> dict[str, tuple[FileType, bytes]]:
    """The templates by the names that Jobbergate has for them."""
    templates: dict[str, tuple[FileType, bytes]] = {}
    for path, content in application.files.items():
        if path in (FILE, WORKFLOW, *READMES):
            continue
        filename = PurePosixPath(path).name
        if not path.endswith(TEMPLATE_SUFFIXES):
            _refuse(application, path, "is no template, and Jobbergate keeps no other files", "make it a template")
        if filename in templates:
            _refuse(application, path, "has the name of another, and Jobbergate keeps no folders", "rename one")
        if len(content) > MAX_FILE_BYTES:
            _refuse(application, path, f"is larger than {MAX_FILE_BYTES >> 20} MiB", "leave data out of it")
        try:
            content.decode()
        except UnicodeDecodeError:
            # It would answer 500.
            _refuse(application, path, "is no UTF-8 text, and Jobbergate keeps only that", "save it as UTF-8")
        kind = FileType.ENTRYPOINT if path == application.entrypoint else FileType.SUPPORT
        templates[filename] = kind, content
    return templates


def _refuse(application: Application, path: str, why: str, hint: str) -> NoReturn:
    raise LoadingError(f"the file {why}", where=f"{application.source}/{path}", hint=hint)


def _description(application: Application) -> str:
    lines = (line for line in application.description.splitlines() if not line.startswith("#"))
    paragraph = "\n".join(lines).strip().partition("\n\n")[0]
    text = " ".join(paragraph.replace("\0", "�").split())
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


__all__ = ["load", "publish"]
