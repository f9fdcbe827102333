"""`jobbergate.yaml`: what an application's files are, and its default variables."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobbergate_flows.applications.errors import LoadingError

FILE = "jobbergate.yaml"


class FileConfig(BaseModel):
    """`jobbergate_config`. Further keys are allowed: they are variables of the templates."""

    model_config = ConfigDict(frozen=True, extra="allow")

    default_template: str | None = None
    template_files: list[str] | None = None
    supporting_files: list[str] | None = None
    supporting_files_output_name: dict[str, str | list[str]] | None = None


class ApplicationConfig(BaseModel):
    """The whole file: `jobbergate_config` and `application_config`, both maps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobbergate_config: FileConfig
    application_config: dict[str, Any] = Field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As the application's code gets it."""
        return {
            "jobbergate_config": self.jobbergate_config.model_dump(exclude_unset=True),
            "application_config": dict(self.application_config),
        }


def parse_config(text: str) -> ApplicationConfig:
    """Read the file's text.

    Raises:
        LoadingError: with the line, and the mend.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        where = f"{FILE}:{mark.line + 1}" if mark else FILE
        raise LoadingError(f"bad YAML: {said}", where=where, hint="mend the YAML at that line") from error
    if not isinstance(content, dict):
        raise LoadingError(
            "the file holds no map", where=FILE, hint="it needs the maps jobbergate_config and application_config"
        )
    try:
        return ApplicationConfig.model_validate(
            {key: {} if value is None and key == "application_config" else value for key, value in content.items()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        place = ".".join(path)
        hints = {
            "extra_forbidden": "the file has two maps, jobbergate_config and application_config: put it into one of them",
            "missing": f"add {place}:",
        }
        message = {"extra_forbidden": f"unknown key {place!r}", "missing": f"{place!r} is missing"}.get(
            first["type"], f"{place}: {first['msg']}"
        )
        line = line_of(text, path)
        raise LoadingError(
            message, where=f"{FILE}:{line}" if line else FILE, hint=hints.get(first["type"], f"mend {place}")
        ) from error


def line_of(text: str, path: list[str]) -> int | None:
    """The line at which a key of the YAML text is; that of the nearest key above it when it is not there."""
    node: Any = yaml.compose(text)
    line = None
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == key), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
    return line


def find_templates(config: ApplicationConfig, files: Mapping[str, bytes], text: str) -> tuple[str, dict[str, str]]:
    """The entrypoint template, and the supporting ones with their output names.

    Args:
        files: The application's files, by their paths in it.
        text: The YAML's text, for the line of an error.

    Raises:
        LoadingError
    """
    names = config.jobbergate_config
    listed: list[tuple[str, str]] = [("supporting_files", name) for name in names.supporting_files or []]
    if names.template_files is not None:
        listed += [("template_files", name) for name in names.template_files]
    if names.default_template:
        listed.append(("default_template", names.default_template))
    found = {(key, name): _resolve(name, files, key, text) for key, name in listed}
    supporting = [found["supporting_files", name] for name in names.supporting_files or []]
    outputs = {path: _output_name(path, names, text) for path in supporting}
    if names.default_template:
        entrypoint = found["default_template", names.default_template]
    else:
        candidates = (
            [found["template_files", name] for name in names.template_files]
            if names.template_files
            else sorted(path for path in files if path.endswith((".j2", ".jinja2")))
        )
        entrypoints = [path for path in candidates if path not in supporting]
        if len(entrypoints) != 1:
            what = f"two entrypoints: {', '.join(entrypoints)}" if entrypoints else "no entrypoint"
            raise LoadingError(
                what,
                where=f"{FILE}:{line_of(text, ['jobbergate_config']) or 1}",
                hint="name the job script's template as default_template, and the others as supporting_files",
            )
        entrypoint = entrypoints[0]
    outputs.pop(entrypoint, None)
    doubled = [output for output in outputs.values() if list(outputs.values()).count(output) > 1]
    if doubled:
        raise LoadingError(
            f"two supporting files are written as {doubled[0]!r}", where=FILE, hint="give one another output name"
        )
    return entrypoint, outputs


def _resolve(name: str, files: Mapping[str, bytes], key: str, text: str) -> str:
    line = line_of(text, ["jobbergate_config", key]) or 1
    path = posixpath.normpath(name)
    if path.startswith(("/", "..")):
        raise LoadingError(
            f"{name!r} points outside the application", where=f"{FILE}:{line}", hint="name a file of the application"
        )
    for candidate in (path, f"templates/{path}", f"templates/{posixpath.basename(path)}"):
        if candidate in files:
            return candidate
    raise LoadingError(
        f"{key} names {name!r}, which is not there", where=f"{FILE}:{line}", hint="add the file, or mend its name"
    )


def _output_name(path: str, names: FileConfig, text: str) -> str:
    for template, output in (names.supporting_files_output_name or {}).items():
        if posixpath.normpath(template) in (path, path.removeprefix("templates/"), posixpath.basename(path)):
            line = line_of(text, ["jobbergate_config", "supporting_files_output_name", template]) or 1
            given = [output] if isinstance(output, str) else output
            if len(given) != 1:
                raise LoadingError(
                    f"{template!r} has {len(given)} output names", where=f"{FILE}:{line}", hint="give it exactly one"
                )
            normal = posixpath.normpath(given[0])
            if normal.startswith(("/", "..")):
                raise LoadingError(
                    f"the output name {given[0]!r} points outside the run's directory",
                    where=f"{FILE}:{line}",
                    hint="give a relative path",
                )
            return normal
    return path.removeprefix("templates/").removesuffix(".j2").removesuffix(".jinja2")
