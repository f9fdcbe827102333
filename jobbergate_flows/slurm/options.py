"""sbatch options as one model: what may be asked for, how it is checked, and how it is written for sbatch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from jobbergate_flows.slurm.arrays import ARRAY_PATTERN, parse_array
from jobbergate_flows.slurm.directives import Directives, check_parameter, parse_parameters
from jobbergate_flows.slurm.errors import OptionRefused

_LINE = r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?"
_EXTRA: Mapping[str, str] = {
    "begin": r"[A-Za-z0-9:+T/.-]+( [A-Za-z0-9:+]+)*",
    "bb": _LINE,
    "cluster-constraint": r"[A-Za-z0-9_.,!&|-]+",
    "contiguous": "",
    "core-spec": r"[0-9]+",
    "cores-per-socket": r"[0-9]+(-[0-9]+)?",
    "cpu-freq": r"[A-Za-z0-9:.-]+",
    "cpus-per-gpu": r"[0-9]+",
    "deadline": r"[A-Za-z0-9:+T/.-]+",
    "delay-boot": r"[0-9]+",
    "distribution": r"[A-Za-z:*,=0-9]+",
    "error": _LINE,
    "exclude": r"[A-Za-z0-9_.,\[\]-]+",
    "exclusive": r"user|mcs",
    "gpu-bind": r"[A-Za-z0-9_:.,*-]+",
    "gpu-freq": r"[A-Za-z0-9=,]+",
    "gpus-per-node": r"[A-Za-z0-9_.:-]+",
    "gpus-per-socket": r"[A-Za-z0-9_.:-]+",
    "gpus-per-task": r"[A-Za-z0-9_.:-]+",
    "gres-flags": r"[A-Za-z-]+",
    "hint": r"[a-z_]+",
    "hold": "",
    "input": _LINE,
    "licenses": r"[A-Za-z0-9_.:,@-]+",
    "mem-bind": r"[A-Za-z0-9_:,-]+",
    "mem-per-gpu": r"[0-9]+[KMGTkmgt]?",
    "mincpus": r"[0-9]+",
    "nice": r"[0-9]{1,9}",
    "no-kill": "",
    "nodelist": r"[A-Za-z0-9_.,\[\]-]+",
    "ntasks-per-core": r"[0-9]+",
    "ntasks-per-gpu": r"[0-9]+",
    "ntasks-per-socket": r"[0-9]+",
    "open-mode": r"append|truncate",
    "output": _LINE,
    "overcommit": "",
    "oversubscribe": "",
    "priority": r"[0-9]+",
    "profile": r"[A-Za-z,]+",
    "reboot": "",
    "signal": r"[RB:]*[A-Za-z0-9]+(@[0-9]+)?",
    "sockets-per-node": r"[0-9]+(-[0-9]+)?",
    "spread-job": "",
    "switches": r"[0-9]+(@[0-9:-]+)?",
    "thread-spec": r"[0-9]+",
    "threads-per-core": r"[0-9]+",
    "time-min": r"[0-9:-]+",
    "tmp": r"[0-9]+[KMGTkmgt]?",
    "use-min-nodes": "",
    "wait-all-nodes": r"[01]",
    "wckey": r"[A-Za-z0-9_.*-]+",
}
"""Further options and the pattern of their values; an empty pattern means a flag without a value."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A value of one line that a pattern describes, here and in the form's schema."""

    pattern: str
    example: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # A form's emptied field may be sent as an empty text.
        return {**handler(schema), "pattern": f"^({self.pattern})?$"}

    def _check(self, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise PydanticCustomError(
                "sbatch_value",
                "{value} is not a value for this option, such as {example}",
                {"value": repr(value), "example": self.example},
            )
        return value


def _checked_array(value: str) -> str:
    parse_array(value)
    return value


_Name = Annotated[str, _Text(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "debug")]
MemoryText = Annotated[str, _Text(r"[0-9]{1,12}([KMGTkmgt][Bb]?)?", "4G")]
TimeText = Annotated[
    str,
    _Text(
        r"[0-9]{1,8}(:[0-9]{1,2}){0,2}|[0-9]{1,5}-[0-9]{1,2}(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE",
        "30, 1:30:00 or 2-00:00:00",
    ),
]
_Array = Annotated[str, _Text(ARRAY_PATTERN, "0-9%4"), AfterValidator(_checked_array)]
_LEAST, _MOST = 1, 1_000_000
_Count = Annotated[int, Field(ge=_LEAST, le=_MOST)]


class SlurmResources(BaseModel):
    """What Slurm is asked for. Every field is optional: an empty one leaves what the script says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: _Name | None = Field(
        default=None, title="Partition", description="The partition (queue) of the cluster."
    )
    account: _Name | None = Field(default=None, title="Account", description="Whom the job is charged to.")
    qos: _Name | None = Field(default=None, title="Quality of service", description="The QOS of the job.")
    time_limit: TimeText | None = Field(
        default=None,
        title="Time limit",
        description="Minutes, or hours:minutes:seconds, or days-hours:minutes. The job is killed after it.",
    )
    nodes: Annotated[str, _Text(r"[1-9][0-9]{0,5}(-[1-9][0-9]{0,5})?", "2 or 2-4")] | None = Field(
        default=None, title="Nodes", description="How many nodes, or a range such as 2-4."
    )
    tasks: _Count | None = Field(default=None, title="Tasks", description="How many tasks (MPI ranks).")
    tasks_per_node: _Count | None = Field(
        default=None, title="Tasks per node", description="How many of them on each node."
    )
    cpus_per_task: _Count | None = Field(
        default=None, title="CPUs per task", description="Cores for the threads of each task."
    )
    memory: MemoryText | None = Field(
        default=None, title="Memory per node", description="Such as 4G; without a unit it is MB."
    )
    memory_per_cpu: MemoryText | None = Field(
        default=None, title="Memory per CPU", description="Such as 2G; instead of the memory per node."
    )
    gpus: Annotated[str, _Text(r"([A-Za-z0-9_.-]+:)?[0-9]{1,5}", "2 or a100:2")] | None = Field(
        default=None,
        title="GPUs",
        description="How many GPUs in all, with a type in front if it matters: a100:2.",
    )
    gres: Annotated[str, _Text(r"[A-Za-z0-9_.:,-]+", "gpu:2")] | None = Field(
        default=None, title="Generic resources", description="Per node, such as gpu:2."
    )
    constraint: Annotated[str, _Text(r"[A-Za-z0-9_.,&|*()\[\]!-]+", "skylake&ssd")] | None = Field(
        default=None, title="Constraint", description="Features that the nodes must have."
    )
    reservation: _Name | None = Field(default=None, title="Reservation", description="A reservation to use.")
    array: _Array | None = Field(
        default=None, title="Job array", description="Task numbers, such as 0-9, or 0-9%4 for four at a time."
    )
    dependency: Annotated[str, _Text(r"[a-z]+(:[0-9+_:]+)?([,?][a-z]+(:[0-9+_:]+)?)*", "afterok:123")] | None = Field(
        default=None, title="Dependency", description="Jobs to wait for, such as afterok:123."
    )
    mail_type: Annotated[str, _Text(r"[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*", "END,FAIL")] | None = Field(
        default=None, title="Mail on", description="Events that Slurm sends a mail for, such as END,FAIL."
    )
    mail_user: Annotated[str, _Text(r"[A-Za-z0-9._%+-]+(@[A-Za-z0-9.-]+)?", "me@example.org")] | None = Field(
        default=None, title="Mail to", description="The address for these mails."
    )
    exclusive: bool = Field(default=False, title="Exclusive nodes", description="Share the nodes with nobody.")
    requeue: bool = Field(
        default=False,
        title="May be requeued",
        description="Whether Slurm may start the job again by itself when a node fails or it is preempted.",
    )
    extra: dict[Annotated[str, StringConstraints(max_length=64)], str] = Field(
        default_factory=dict,
        title="Further options",
        description='Other sbatch options as JSON, name and value: {"nodelist": "node7", "hint": "nomultithread"}.',
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if value is not None and value != ""}

    def model_post_init(self, _context: Any, /) -> None:
        for name, value in self.extra.items():
            pattern = _EXTRA.get(name)
            if pattern is None:
                raise PydanticCustomError(
                    _NOT_ALLOWED, "sbatch option {option} is unknown or not allowed here", {"option": repr(name)}
                )
            if not re.fullmatch(pattern, value):
                expected = "takes no value" if not pattern else f"does not take {value!r}"
                raise ValueError(f"sbatch option {name!r} {expected}")
        low, dash, high = (self.nodes or "").partition("-")
        if dash and int(low) > int(high):
            raise ValueError(f"nodes {self.nodes} is no range: write the smaller number first")
        if self.memory and self.memory_per_cpu:
            raise ValueError("memory and memory_per_cpu exclude one another: leave one of them empty")

    def to_arguments(self) -> tuple[str, ...]:
        """The options as `--option=value`, each one argument; `--requeue` or `--no-requeue` is always among them."""
        arguments = [
            f"--{option}={value}"
            for field, option in OPTION_OF_FIELD.items()
            if (value := getattr(self, field)) is not None
        ]
        if self.dependency:
            # Without it the job pends for ever when the dependency fails.
            arguments.append("--kill-on-invalid-dep=yes")
        if self.exclusive:
            arguments.append("--exclusive")
        arguments.append("--requeue" if self.requeue else "--no-requeue")
        arguments += [f"--{name}={value}" if value else f"--{name}" for name, value in self.extra.items()]
        return tuple(arguments)

    def over(self, base: SlurmResources) -> SlurmResources:
        """These options, and those of `base` where these say nothing."""
        mine = self.model_dump(exclude_unset=True)
        others = base.model_dump(exclude_unset=True)
        # Each of the two replaces the other.
        for name, rival in (("memory", "memory_per_cpu"), ("memory_per_cpu", "memory")):
            if name in mine:
                others.pop(rival, None)
        return SlurmResources.model_validate({**others, **mine, "extra": {**base.extra, **self.extra}})


OPTION_OF_FIELD: Mapping[str, str] = {
    "partition": "partition", "account": "account", "qos": "qos", "time_limit": "time", "nodes": "nodes",
    "tasks": "ntasks", "tasks_per_node": "ntasks-per-node", "cpus_per_task": "cpus-per-task", "memory": "mem",
    "memory_per_cpu": "mem-per-cpu", "gpus": "gpus", "gres": "gres", "constraint": "constraint",
    "reservation": "reservation", "array": "array", "dependency": "dependency", "mail_type": "mail-type",
    "mail_user": "mail-user",
}  # fmt: skip
_FIELD_OF_OPTION = {option: field for field, option in OPTION_OF_FIELD.items()}
ALLOWED = frozenset({*OPTION_OF_FIELD.values(), *_EXTRA, "kill-on-invalid-dep", "exclusive", "requeue", "no-requeue"})
"""The names of all sbatch options that may be asked for."""

_NOT_ALLOWED = "option_not_allowed"
_SELF_EXPLAINING = "correct that option; sbatch's manual says what each takes"
_OURS = {"job-name", "comment", "chdir"}


def resources_from_options(options: Mapping[str, str], *, strict: bool = True) -> SlurmResources:
    """The resources that sbatch options ask for.

    Args:
        options: Long option name -> value ("" for a flag).
        strict: Refuse what is unknown or malformed, instead of leaving it aside.

    Raises:
        OptionRefused: with the option, and what would be right.
    """
    values: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for name, value in options.items():
        if name in _FIELD_OF_OPTION:
            if strict and not value:
                raise OptionRefused(f"sbatch option --{name} needs a value", hint=f"write it as --{name}=value")
            values[_FIELD_OF_OPTION[name]] = value
        elif name in ("requeue", "no-requeue"):
            if strict and value:
                raise OptionRefused(f"sbatch option --{name} takes no value", hint=f"write it as --{name}")
            values["requeue"] = name == "requeue"
        elif name == "exclusive" and not value:
            values["exclusive"] = True
        elif name == "kill-on-invalid-dep":
            if strict and value != "yes":
                raise OptionRefused(
                    f"sbatch option --{name} may only be yes",
                    hint="leave it out: a job whose dependency failed would wait for ever",
                )
        elif strict or re.fullmatch(_EXTRA.get(name, r"(?!)"), value):
            extra[name] = value
    try:
        return SlurmResources.model_validate({**values, "extra": extra})
    except ValidationError as error:
        if strict:
            raise refused(error, as_options=True) from error
    return SlurmResources.model_validate({**_without_malformed(values), "extra": extra})


def _without_malformed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that can be asked for, one after the other; of two that exclude one another the first."""
    good: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(ValidationError):
            SlurmResources.model_validate({**good, name: value})
            good[name] = value
    return good


def check_resources(values: SlurmResources | Mapping[str, Any] | None) -> SlurmResources:
    """Validated resources from a mapping, as a form or a flow gives them.

    Raises:
        OptionRefused: naming the field, and what would be right.
    """
    if isinstance(values, SlurmResources):
        return values
    if not isinstance(values, Mapping | None):
        raise OptionRefused(
            f"the resources are {type(values).__name__}, no mapping",
            where="resources",
            hint='map the fields to values, as {"tasks": 4}',
        )
    try:
        return SlurmResources.model_validate(dict(values or {}))
    except ValidationError as error:
        raise refused(error) from error


def parse_option_arguments(arguments: Sequence[str]) -> SlurmResources:
    """The resources of arguments such as `--time=5` or `-p debug`.

    Raises:
        OptionRefused: An option is unknown, not allowed, or malformed.
    """
    for argument in arguments:
        check_parameter(argument)
    return resources_from_options(parse_parameters(arguments).options)


def resources_of(directives: Directives) -> SlurmResources:
    """What a script's `#SBATCH` lines ask for, as far as this model has it."""
    return resources_from_options({k: v for k, v in directives.options.items() if k not in _OURS}, strict=False)


def form_properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The fields of a model as the properties of a form: each of one type, in their order, without empty defaults."""
    properties = {}
    for position, (name, given) in enumerate(model.model_json_schema()["properties"].items()):
        entry = dict(given)
        for choice in entry.pop("anyOf", []):
            if choice.get("type") != "null":
                entry.update(choice)
        if entry.get("default") is None:
            entry.pop("default", None)
        entry["position"] = position
        properties[name] = entry
    return properties


def resources_schema(directives: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON Schema of the resources for a form: every field optional, with what the script says as its default.

    Args:
        directives: The parameters of the script's `#SBATCH` lines.
    """
    said = resources_of(parse_parameters(directives)).model_dump(exclude_unset=True, exclude_none=True)
    properties = form_properties(SlurmResources)
    for name, entry in properties.items():
        entry.pop("default", None)
        if name in said and name != "extra":
            entry["default"] = said[name]
            entry["description"] = f"{entry.get('description', '')} The job script says {said[name]}."
    return {
        "type": "object",
        "title": "Resources",
        "properties": properties,
        "additionalProperties": False,
    }


def refused(error: ValidationError, *, as_options: bool = False) -> OptionRefused:
    """One clear error of a validation's many.

    Args:
        as_options: Name sbatch's option, which was given, instead of the field.
    """
    first = error.errors()[0]
    kind, given = first["type"], repr(first["input"])[:100]
    path = [str(part) for part in first["loc"]]
    name = path[0] if path else ""
    where = ".".join(["resources", *path])
    if as_options and path:
        where = f"--{OPTION_OF_FIELD.get(name, name)}"
    message = str(first["msg"]).removeprefix("Value error, ")
    described = SlurmResources.model_fields.get(name)
    hint = described.description if described is not None else _SELF_EXPLAINING
    if kind == "extra_forbidden":
        message, hint = "there is no such option", f"known are {', '.join(SlurmResources.model_fields)}"
    elif kind == _NOT_ALLOWED:
        hint = f"allowed are {', '.join(_EXTRA)}"
    elif kind == "sbatch_value":
        hint = f"write it as {first['ctx']['example']}"
    elif kind.startswith("bool"):
        message, hint = f"{given} is neither true nor false", "write true or false"
    elif kind.startswith(("int", "greater", "less")):
        message = f"{given} is no whole number from {_LEAST} to {_MOST}"
    return OptionRefused(message, where=where, hint=hint)
