"""`jobbergate.yaml`: which of an application's files are what, and its default variables."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jobbergate_flows.applications.errors import LoadingError
from jobbergate_flows.reading import read_yaml
from jobbergate_flows.slurm.errors import FileRefused
from jobbergate_flows.slurm.results import check_patterns

FILE = "jobbergate.yaml"
MAX_BYTES = 256 << 10
TEMPLATE_SUFFIXES = (".j2", ".jinja2")

_OutputName = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1, max_length=1),
]


class JobbergateConfig(BaseModel):
    """`jobbergate_config`. Further keys are variables of the templates.

    `result_files` is our own: patterns, as in a `.gitignore`, of the files in a job's directory that are its results.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    default_template: str | None = None
    template_files: list[str] | None = None
    supporting_files: list[str] | None = None
    supporting_files_output_name: dict[str, _OutputName] | None = None
    result_files: list[str] | None = None


class ApplicationConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobbergate_config: JobbergateConfig
    application_config: dict[str, Any]

    def as_read(self) -> dict[str, Any]:
        """What the application's class is made with."""
        own = self.jobbergate_config
        said = {name: getattr(own, name) for name in JobbergateConfig.model_fields if name in own.model_fields_set}
        return {
            "jobbergate_config": {**said, **(own.model_extra or {})},
            "application_config": dict(self.application_config),
        }


def parse_config(text: str) -> ApplicationConfig:
    """Read the file's text.

    Raises:
        LoadingError: with the line.
    """
    if len(text) > MAX_BYTES:
        raise LoadingError(f"the file is larger than {MAX_BYTES >> 10} KiB", where=FILE, hint="leave data out of it")
    documents = read_yaml(text, where=FILE, refused=LoadingError)
    content = documents[0] if len(documents) == 1 else None
    if not isinstance(content, dict):
        raise LoadingError(
            "the file holds no map", where=FILE, hint="it needs the maps jobbergate_config and application_config"
        )
    # `application_config:` with nothing below it is an empty map to whoever writes it.
    content = {key: {} if value is None and key == "application_config" else value for key, value in content.items()}
    try:
        return ApplicationConfig.model_validate(content)
    except ValidationError as error:
        raise _refused(error, text) from error


def result_patterns(config: ApplicationConfig, text: str) -> tuple[str, ...]:
    """The patterns of the result files.

    Raises:
        LoadingError: One is none.
    """
    patterns = config.jobbergate_config.result_files or []
    for index, pattern in enumerate(patterns):
        try:
            check_patterns([pattern])
        except FileRefused as error:
            where = _where(_line_of(text, "jobbergate_config", "result_files", index))
            raise LoadingError(f"result_files: {error.message}", where=where, hint=error.hint) from error
    return tuple(patterns)


def find_templates(config: ApplicationConfig, files: Collection[str], text: str) -> tuple[str, dict[str, str]]:
    """The entrypoint template, and the supporting ones with their output names.

    A listed name is a path in the application, or in its `templates` folder.

    Args:
        config: What the file says.
        files: The paths of the application's files.
        text: The file's text, for the line of an error.

    Raises:
        LoadingError: A file that is not there or lies outside; none or several entrypoints; output names that clash.
    """
    names = config.jobbergate_config

    def resolved(key: str, listed: Sequence[str]) -> list[str]:
        return [_resolve(name, files, key, _line_of(text, "jobbergate_config", key, index))
                for index, name in enumerate(listed)]  # fmt: skip

    supporting = resolved("supporting_files", names.supporting_files or [])
    listed = resolved("template_files", names.template_files or [])
    if names.default_template is not None:
        (entrypoint,) = resolved("default_template", [names.default_template])
    else:
        listed = listed or sorted(path for path in files if path.endswith(TEMPLATE_SUFFIXES))
        entrypoints = [path for path in dict.fromkeys(listed) if path not in supporting]
        if len(entrypoints) != 1:
            raise LoadingError(
                f"{len(entrypoints)} entrypoints: {', '.join(entrypoints)}" if entrypoints else "no entrypoint",
                where=_where(_line_of(text, "jobbergate_config")),
                hint="name the job script's template as default_template, and the others as supporting_files",
            )
        entrypoint = entrypoints[0]
    return entrypoint, _outputs([path for path in supporting if path != entrypoint], names, files, text)


def _outputs(supporting: list[str], names: JobbergateConfig, files: Collection[str], text: str) -> dict[str, str]:
    key = "supporting_files_output_name"
    given = {}
    for template, (output,) in (names.supporting_files_output_name or {}).items():
        line = _line_of(text, "jobbergate_config", key, template)
        normal = posixpath.normpath(output)
        if normal.startswith(("/", "..")) or normal == ".":
            raise LoadingError(
                f"the output name {output!r} lies outside the run's directory",
                where=_where(line),
                hint="give a relative path",
            )
        given[_resolve(template, files, key, line)] = normal
    outputs: dict[str, str] = {}
    for path in dict.fromkeys(supporting):
        output = given.get(path, path.removeprefix("templates/").removesuffix(".j2").removesuffix(".jinja2"))
        if output in outputs.values():
            raise LoadingError(
                f"two supporting files are written as {output!r}",
                where=_where(_line_of(text, "jobbergate_config", "supporting_files")),
                hint=f"give one of them another name in {key}",
            )
        outputs[path] = output
    return outputs


def _resolve(name: str, files: Collection[str], key: str, line: int | None) -> str:
    path = posixpath.normpath(name)
    if path.startswith(("/", "..")):
        raise LoadingError(
            f"{key} names {name!r}, which lies outside the application",
            where=_where(line),
            hint="copy the file into the application",
        )
    for candidate in (path, f"templates/{path}", f"templates/{posixpath.basename(path)}"):
        if candidate in files:
            return candidate
    raise LoadingError(
        f"{key} names {name!r}, which is not there", where=_where(line), hint="add the file, or mend its name"
    )


def _refused(error: ValidationError, text: str) -> LoadingError:
    first = error.errors()[0]
    kind, path = first["type"], first["loc"]
    place = ".".join(str(part) for part in path)
    line = _line_of(text, *path)
    if kind == "extra_forbidden":
        hint = "the file has two maps, jobbergate_config and application_config: put it into one of them"
        return LoadingError(f"unknown key {place!r}", where=_where(line), hint=hint)
    if kind == "missing":
        return LoadingError(f"the map {place} is missing", where=_where(line), hint=f"add {place}:")
    if kind in ("too_short", "too_long"):
        message = f"{place} has {first['ctx']['actual_length']} output names"
        return LoadingError(message, where=_where(line), hint="give it exactly one")
    wanted = {"model_type": "a map", "dict_type": "a map", "list_type": "a list", "string_type": "a text"}.get(kind)
    message = f"{place} is not {wanted}" if wanted else f"{place}: {first['msg']}"
    return LoadingError(message, where=_where(line), hint=f"mend {place}")


def _line_of(text: str, *path: str | int) -> int | None:
    """The line of a place in the YAML text; of the nearest one above it when it is not there itself."""
    node: Any = yaml.compose(text)
    line = None
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == key), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line


def _where(line: int | None) -> str:
    return f"{FILE}:{line}" if line else FILE
