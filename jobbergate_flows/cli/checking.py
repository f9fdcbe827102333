"""Everything that can be said of an application before it is run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from jobbergate_flows.applications import Application, load_application
from jobbergate_flows.applications.errors import ApplicationError, MissingAnswer
from jobbergate_flows.slurm.cluster import Finding
from jobbergate_flows.slurm.directives import KNOWN_OPTIONS, Directives, parse_directives, parse_parameters
from jobbergate_flows.slurm.errors import OptionRefused
from jobbergate_flows.slurm.options import OPTION_OF_FIELD, resources_from_options


@dataclass(frozen=True, slots=True)
class ApplicationCheck:
    """What was found, in the order in which it was looked at."""

    findings: tuple[Finding, ...]
    name: str | None = None
    digest: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.ok for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """What scripts get of it."""
        findings = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "name": self.name, "digest": self.digest, "findings": findings}


def check_application(reference: str) -> ApplicationCheck:
    """Load an application, read its questions, and render it with its defaults where it has them all."""
    try:
        application = load_application(reference)
    except ApplicationError as error:
        return ApplicationCheck((_wrong("folder", error),))
    findings = (*_folder(application), *_questions(application), *_script(application))
    return ApplicationCheck(findings, application.name, application.digest)


def _folder(application: Application) -> Iterator[Finding]:
    yield Finding("folder", True, f"{len(application.files)} files, {application.digest}")
    supporting = ", ".join(application.supporting.values())
    yield Finding(
        "templates", True, f"{application.entrypoint}{f'; supporting files {supporting}' if supporting else ''}"
    )


def _questions(application: Application) -> Iterator[Finding]:
    try:
        interface = application.describe()
    except ApplicationError as error:
        yield _wrong("questions", error)
        return
    for fault in interface.faults:
        yield Finding("questions", False, fault, "mend the question in jobbergate.py")
    form = interface.form
    needed = form.get("required", [])
    detail = f"{len(form.get('properties', {}))} in the form"
    yield Finding("questions", True, f"{detail}; without a default: {', '.join(needed)}" if needed else detail)


def _script(application: Application) -> Iterator[Finding]:
    try:
        text = application.render({}).text
    except MissingAnswer as error:
        yield Finding("job script", True, f"not rendered, as it needs an answer: {error.message}")
        return
    except ApplicationError as error:
        yield _wrong("job script", error)
        return
    yield Finding("job script", True, f"{len(text.splitlines())} lines with the defaults")
    said = parse_directives(text)
    wrong = list(_unreadable(text, said))
    yield from wrong
    options = said.options
    try:
        resources_from_options({name: options[name] for name in OPTION_OF_FIELD.values() if name in options})
    except OptionRefused as error:
        yield _wrong("#SBATCH", error)
        wrong = [*wrong, _wrong("#SBATCH", error)]
    if not wrong:
        yield Finding("#SBATCH", True, ", ".join(f"{name}={value}" for name, value in options.items()) or "none")
    command: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if command is not None and re.match(r"#SBATCH\b", line):
            yield Finding(
                "#SBATCH",
                False,
                f"line {number} of the script comes after the first command (line {command}): Slurm ignores it",
                f"move it up: {line.strip()}",
            )
        elif command is None and line.strip() and not line.lstrip().startswith("#"):
            command = number


def _unreadable(text: str, said: Directives) -> Iterator[Finding]:
    """What sbatch would refuse the `#SBATCH` lines for, whatever their values are."""
    lines = text.split("\n")
    number = 0
    for raw in said.raw:
        number = next(
            place
            for place, line in enumerate(lines[number:], start=number + 1)
            if line.startswith("#SBATCH") and line.removeprefix("#SBATCH").strip() == raw
        )
        read = parse_parameters([raw])
        for fault in read.faults:
            hint = 'a value with blanks stands in quotes, as --output="my job.out"'
            yield Finding("#SBATCH", False, f"line {number} of the script: {fault}", hint)
        for name in read.options:
            if name not in KNOWN_OPTIONS:
                close = difflib.get_close_matches(name, sorted(KNOWN_OPTIONS), 1)
                dashes = "--" if len(name) > 1 else "-"
                yield Finding(
                    "#SBATCH",
                    False,
                    f"line {number} of the script: sbatch has no option {dashes}{name}",
                    f"did you mean --{close[0]}?" if close else "`sbatch --help` shows those that there are",
                )


def _wrong(subject: str, error: ApplicationError | OptionRefused) -> Finding:
    where = f"{error.where}: " if error.where else ""
    return Finding(subject, False, f"{where}{error.message}", error.hint)
