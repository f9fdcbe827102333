"""A user's own word on what may run as them: `~/.config/jobbergate-flows/authorized_deployments`.

One line allows one thing, as in authorized_keys; empty lines and what follows a `#` at a field's place are comments:

    DEPLOYMENT [sha256:APPLICATION [sha256:REQUEST]] [option=value,option=value...] [# comment]

- DEPLOYMENT is a deployment's UUID or `flow/name`, compared letter by letter; one with blanks or letters beyond ASCII
  is written in double quotes, with `\\"` and `\\\\` for these two.
- APPLICATION is the digest of the application's files, REQUEST the hash of answers, resources, directory,
  job name and retries.
- `answers=any` stands for every request: **whoever can write to the Prefect API can then run code as this user**, as
  answers end up in a shell script.
- `flows=any` allows the deployment's ordinary flows, whose code nothing pins: the same, even without an application. A
  line with it may leave APPLICATION out, and then allows nothing but ordinary flows.
- `expires=2026-12-31` (the end of that day, UTC) or a time with its zone, `2026-12-31T18:00:00+01:00`.
- `max-nodes=4`, `max-tasks`, `max-cpus` (in all), `max-memory=64G` (on a node), `max-gpus` (in all),
  `max-time=2-00:00:00`, `max-array` (tasks of an array), `partition=a|b`, `account=a|b`: see `limits`. A run must state
  each quantity that is limited.

A line that cannot be read allows nothing, and leaves the others as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from agent_worker.identity.facts import RequestRefused, RunFacts, request_hash
from agent_worker.identity.files import locked, read_own_text, replace_text
from agent_worker.identity.limits import Limits, exceeded
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.slurm.errors import OptionRefused
from jobbergate_flows.slurm.options import check_resources
from jobbergate_flows.slurm.units import memory_kib, time_seconds

PLACE = Path(".config/jobbergate-flows/authorized_deployments")
"""The file, below a user's home."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_NAME = re.compile(r"[^/]+/[^/]+")
_FIELD = re.compile(r'"((?:[^"\\]|\\["\\])*)"|([!$-~][!#-~]*)')
_EXPIRY = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2}))?")


class ConsentRefused(JobbergateFlowsError):
    """A line of consent cannot be read, or the file cannot be changed."""


@dataclass(frozen=True, slots=True)
class ConsentLine:
    """One line: what it allows.

    Args:
        number: Its place in the file, from 1.
        deployment: The deployment's UUID in lowercase, or `flow/name`.
        application: The digest; None in a line for ordinary flows only.
        request: The request's hash; None for any.
        any_flow: Whether ordinary flows may run.
        expires: When it ends; None for never.
        limits: What a run may ask for.
        options: The options as they are written.
        comment: What follows the `#`.
    """

    number: int
    deployment: str
    application: str | None = None
    request: str | None = None
    any_answers: bool = False
    any_flow: bool = False
    expires: datetime | None = None
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""

    def names(self, facts: RunFacts) -> bool:
        """Whether the line is about the run's deployment."""
        return self.deployment in (facts.deployment_id, facts.deployment_name)


@dataclass(frozen=True, slots=True)
class Consent:
    """A file's lines, and an error for each that cannot be read."""

    lines: tuple[ConsentLine, ...] = ()
    problems: tuple[ConsentRefused, ...] = ()


def parse(text: str) -> Consent:
    """Read a file's text. Nothing in it makes this fail: what cannot be read is among the problems, with its number."""
    lines: list[ConsentLine] = []
    problems: list[ConsentRefused] = []
    # Not splitlines: a comment must not become a line by a separator that no editor shows.
    for number, written in enumerate(text.split("\n"), start=1):
        try:
            line = parse_line(written, number)
        except ConsentRefused as problem:
            problems.append(problem)
        else:
            if line is not None:
                lines.append(line)
    return Consent(tuple(lines), tuple(problems))


def parse_line(written: str, number: int = 1) -> ConsentLine | None:
    """Read one line; None for a comment or an empty one.

    Raises:
        ConsentRefused: It cannot be read. The error names the line and what is wrong with it.
    """
    try:
        if "\n" in written:
            raise ValueError("these are several lines")
        words, comment = _fields(written.removesuffix("\r"))
        return _line(number, words, comment) if words else None
    except ValueError as error:
        raise ConsentRefused(
            str(error), where=f"line {number}", hint="`jobbergate-flows consent add` writes a line that can be read"
        ) from error


def matches(line: ConsentLine, facts: RunFacts, now: datetime) -> str | None:
    """Why a line does not allow a run; None when it does.

    Args:
        now: The time, with its zone.
    """
    if not line.names(facts):
        return "it is for another deployment"
    if line.expires is not None and now >= line.expires:
        return f"it expired at {line.expires.isoformat()}"
    if facts.kind == "flow":
        if not line.any_flow:
            return "the run is an ordinary flow, and the line does not say flows=any"
    elif line.application is None or line.application != facts.application:
        return f"the line allows {line.application or 'ordinary flows only'}, and the run is of {facts.application}"
    try:
        if line.request is not None and line.request != request_hash(facts):
            return "answers, resources, directory, job name or retries are others than those that were allowed"
        if facts.kind == "application" and line.request is None and not line.any_answers:
            return "the line allows no request"
        return exceeded(line.limits, check_resources(facts.resources)) if line.limits.exist else None
    except (RequestRefused, OptionRefused) as error:
        return str(error)


def write_line(
    deployment: str,
    *,
    application: str | None = None,
    request: str | None = None,
    options: Mapping[str, str] | None = None,
    comment: str = "",
) -> str:
    """The text of a line, without its end.

    Args:
        comment: What of it is not printable ASCII becomes `?`: it may come from a server, and must end no line.

    Raises:
        ConsentRefused: It would be none that can be read.
    """
    words = [_quoted(deployment), *filter(None, (application, request))]
    if options:
        words.append(",".join(f"{name}={value}" for name, value in options.items()))
    shown = re.sub(r"[^ -~]", "?", comment).strip()
    written = " ".join([*words, *([f"# {shown}"] if shown else [])])
    try:
        parse_line(written)
    except ConsentRefused as error:
        # It is in no file yet: that it is line 1 helps nobody.
        raise ConsentRefused(error.message, hint="`jobbergate-flows consent add --help` says what there is") from error
    return written


def add(path: Path, written: str) -> None:
    """Add a line at the end of a user's file, and leave the rest as it is. Makes the file, 0600, and its folder, 0700.

    Raises:
        ConsentRefused: The line cannot be read, or the file is none that the worker would read.
    """
    parse_line(written)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path.parent):
        text = _read(path)
        if text and not text.endswith("\n"):
            text += "\n"
        replace_text(path, f"{text}{written}\n", mode=0o600)


def remove(path: Path, which: Callable[[ConsentLine], bool]) -> tuple[ConsentLine, ...]:
    """Remove the lines for which `which` is true, leave all others as they are, and return what was removed.

    Raises:
        ConsentRefused: The file is none that the worker would read.
    """
    if not path.parent.is_dir():
        return ()
    with locked(path.parent):
        text = _read(path)
        gone = {line.number: line for line in parse(text).lines if which(line)}
        if gone:
            kept = [written for number, written in enumerate(text.split("\n"), start=1) if number not in gone]
            replace_text(path, "\n".join(kept), mode=0o600)
    return tuple(gone.values())


def read(path: Path) -> Consent:
    """A user's own file; without one there is no consent.

    Raises:
        ConsentRefused: The file is none that the worker would read.
    """
    return parse(_read(path))


def _read(path: Path) -> str:
    try:
        return read_own_text(path) or ""
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConsentRefused(
            f"the file cannot be used: {said}",
            where=str(path),
            hint="it must be a plain file of yours, in UTF-8, that nobody else may write",
        ) from error


def _fields(written: str) -> tuple[list[str], str]:
    words: list[str] = []
    position = 0
    while True:
        rest = written[position:].lstrip(" \t")
        position = len(written) - len(rest)
        if not rest:
            return words, ""
        if rest.startswith("#"):
            return words, rest[1:].strip()
        match = _FIELD.match(written, position)
        if match is None or written[match.end() : match.end() + 1] not in ("", " ", "\t"):
            raise ValueError(f"column {position + 1} is no field: {rest[:40]!a}")
        word = match[2] if match[1] is None else re.sub(r"\\(.)", r"\1", match[1])
        if not word.isprintable():
            raise ValueError(f"column {position + 1} holds a character that cannot be seen")
        words.append(word)
        position = match.end()


def _line(number: int, words: Sequence[str], comment: str) -> ConsentLine:
    deployment, *rest = words
    if _UUID.fullmatch(deployment):
        deployment = deployment.lower()
    elif not _NAME.fullmatch(deployment):
        raise ValueError(f"{deployment!a} is no deployment: give its UUID, or flow/name")
    digests: list[str] = []
    while rest and rest[0].startswith("sha256:") and len(digests) < 2:
        digests.append(_digest(rest.pop(0)))
    options = _options(rest.pop(0)) if rest else {}
    if rest:
        raise ValueError(f"{rest[0]!a} is too much: a line is DEPLOYMENT sha256:APPLICATION sha256:REQUEST options")
    application = digests[0] if digests else None
    request = digests[1] if len(digests) > 1 else None
    any_answers, any_flow = _says_any(options, "answers"), _says_any(options, "flows")
    if application is None and not any_flow:
        raise ValueError("the application's digest is missing: sha256: and 64 hexadecimal digits")
    if application is None and any_answers:
        raise ValueError("answers=any needs the application's digest")
    if application is not None and (request is None) != any_answers:
        raise ValueError("give either the request's hash, or answers=any")
    return ConsentLine(
        number=number,
        deployment=deployment,
        application=application,
        request=request,
        any_answers=any_answers,
        any_flow=any_flow,
        expires=_expiry(options["expires"]) if "expires" in options else None,
        limits=Limits(**{_LIMITS[name][0]: _LIMITS[name][1](options[name]) for name in options if name in _LIMITS}),
        options=options,
        comment=comment,
    )


def _digest(word: str) -> str:
    if not _DIGEST.fullmatch(word):
        raise ValueError(f"{word!a} is no digest: sha256: and 64 hexadecimal digits in lowercase")
    return word


def _options(word: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in word.split(","):
        name, equals, value = part.partition("=")
        if name not in _KNOWN or not equals or not value:
            raise ValueError(f"{part!a} is no option: there are {', '.join(f'{known}=' for known in _KNOWN)}")
        if name in options:
            raise ValueError(f"{name} is said twice")
        options[name] = value
    return options


def _says_any(options: Mapping[str, str], name: str) -> bool:
    if options.get(name, "any") != "any":
        raise ValueError(f"{name}={options[name]} means nothing: write {name}=any, or leave it out")
    return name in options


def _expiry(text: str) -> datetime:
    match = _EXPIRY.fullmatch(text)
    if match is None:
        raise ValueError(f"expires={text} is no date such as 2026-12-31, and no time with its zone")
    try:
        if match[2] is None:
            return datetime.combine(date.fromisoformat(text) + timedelta(days=1), time(), UTC)
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"expires={text} is no date: {error}") from error


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{text!a} is no number")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split("|"))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise ValueError(f"{name!a} is no name")
    return names


_LIMITS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "max-nodes": ("nodes", _count),
    "max-tasks": ("tasks", _count),
    "max-cpus": ("cpus", _count),
    "max-memory": ("memory", memory_kib),
    "max-gpus": ("gpus", _count),
    "max-time": ("time", time_seconds),
    "max-array": ("array", _count),
    "partition": ("partitions", _names),
    "account": ("accounts", _names),
}
_KNOWN = ("answers", "flows", "expires", *_LIMITS)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[!$-~][!#-~]*", word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
