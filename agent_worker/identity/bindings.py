"""The site's table of who may run what: a YAML file of root's on the worker's side.

    - deployment: parameter-study/nightly       # or its UUID
      application: sha256:...                   # the digest of its application
      account: alice
    - deployment: my-flow/prod                  # an ordinary flow, whose code nothing pins
      flows: any
      account: bob
    - queue: slurm/bobs
      account: bob
    - created_by: 7f9f...                       # the id of somebody on Prefect Cloud
      account: alice
    - pool: carols-pool
      account: carol

Each entry has one selector. The most specific one that fits a run decides, and nothing else is looked at: the
deployment's UUID, its name, the queue, who made the run, the pool. A deployment may be there with several digests.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent_worker.identity.facts import RunFacts
from agent_worker.identity.files import MAX_BYTES, check_file, check_place, decoded, locked, replace_text
from jobbergate_flows.errors import JobbergateFlowsError

if TYPE_CHECKING:
    from ruamel.yaml import YAML

DEFAULT_FILE = Path("/etc/jobbergate-flows/bindings.yaml")

Selector = Literal["deployment", "queue", "created_by", "pool"]
_SELECTORS: tuple[Selector, ...] = ("deployment", "queue", "created_by", "pool")
_KEYS = (*_SELECTORS, "application", "account", "flows")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class BindingsBroken(JobbergateFlowsError):
    """The table cannot be read, trusted or changed. Nobody is let in by it."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One entry of the table.

    Args:
        selector: What of a run is compared.
        value: What it must be: a UUID in lowercase, a `flow/name`, a `pool/queue`, an id, a pool's name.
        account: The Unix account.
        application: The digest; only with a deployment.
        any_flow: Whether ordinary flows may run as the account too.
        line: Its line in the file; 0 for one that is not in a file yet.
    """

    selector: Selector
    value: str
    account: str
    application: str | None = None
    any_flow: bool = False
    line: int = 0

    @property
    def proof(self) -> str:
        """The entry in a few words, for the audit log."""
        return f"binding {self.selector}={self.value} (line {self.line})"

    @property
    def key(self) -> tuple[str, str, str | None]:
        """Two entries with the same key would decide about the same runs."""
        return self.selector, self.value, self.application

    def as_entry(self) -> dict[str, str]:
        """As it is in the file."""
        entry: dict[str, str] = {self.selector: self.value}
        if self.application is not None:
            entry["application"] = self.application
        if self.any_flow:
            entry["flows"] = "any"
        return {**entry, "account": self.account}


@dataclass(frozen=True, slots=True)
class Bindings:
    """The whole table, in the file's order."""

    entries: tuple[Binding, ...] = ()

    def of_run(self, facts: RunFacts) -> tuple[Binding, ...]:
        """The entries that decide about a run: those of the most specific selector that fits it; empty when none does.

        Whether the application is the one that they name is left to who decides: another one must be refused, and not
        be let in by a less specific entry.
        """
        for selector, value in _asked(facts):
            found = tuple(entry for entry in self.entries if (entry.selector, entry.value) == (selector, value))
            if found:
                return found
        return ()


def make_binding(values: Mapping[str, Any], *, line: int = 0) -> Binding:
    """A binding of an entry's keys and values.

    Raises:
        ValueError: They are none; it says what is wrong.
    """
    for key, value in values.items():
        if key not in _KEYS:
            raise ValueError(f"{key!a} is no key: there are {', '.join(_KEYS)}")
        if not isinstance(value, str):
            raise ValueError(f"{key} is no text: put it in quotes")
        if not value or not value.isprintable() or value != value.strip():
            raise ValueError(f"{key} is empty, or holds what cannot be seen")
    given = [selector for selector in _SELECTORS if selector in values]
    if len(given) != 1:
        raise ValueError(f"an entry has one of {', '.join(_SELECTORS)}, and this has {' and '.join(given) or 'none'}")
    selector = given[0]
    application, flows = values.get("application"), values.get("flows")
    if "account" not in values:
        raise ValueError("account is missing: who the runs are")
    if not re.fullmatch(r"(?![0-9]+$)[A-Za-z0-9_][A-Za-z0-9_.@-]*", values["account"]):
        raise ValueError(f"{values['account']!a} is no account's name")
    if flows not in (None, "any"):
        raise ValueError(f"flows: {flows!a} means nothing: write flows: any, or leave it out")
    if application is not None and selector != "deployment":
        raise ValueError(f"application goes with a deployment, and not with a {selector}")
    if application is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", application):
        raise ValueError(f"{application!a} is no digest: sha256: and 64 hexadecimal digits in lowercase")
    if selector == "deployment" and application is None and flows is None:
        raise ValueError("a deployment needs its application's digest, or flows: any for an ordinary flow")
    value = _selected(selector, values[selector])
    return Binding(selector, value, values["account"], application, flows == "any", line)


def parse_bindings(text: str, *, where: str) -> Bindings:
    """The table of a file's text.

    Args:
        where: The file, for errors.

    Raises:
        BindingsBroken: It is no table; the error names the line. Two entries for the same are none either.
    """
    entries: list[Binding] = []
    lines: dict[tuple[str, str, str | None], int] = {}
    for line, values in _entries(text, where):
        try:
            entry = make_binding(values, line=line)
            if entry.key in lines:
                raise ValueError(f"line {lines[entry.key]} is about the same {entry.selector}")
        except ValueError as error:
            raise BindingsBroken(
                str(error), where=f"{where}:{line}", hint="mend the entry; nobody is let in before"
            ) from error
        lines[entry.key] = line
        entries.append(entry)
    return Bindings(tuple(entries))


def load_bindings(path: Path = DEFAULT_FILE, *, owner: int = 0) -> Bindings:
    """Read the table; a file that is not there is one without entries.

    Args:
        owner: The uid that the file and its directory must belong to.

    Raises:
        BindingsBroken: It cannot be read, is a link, could have been written by somebody else, or is no table.
    """
    text, _ = _read(path, owner)
    return parse_bindings(text, where=str(path))


class BindingsFile:
    """The table as it is in the file now: read again when that has changed, and never remembered past an error.

    Args:
        path: The file.
        owner: The uid that it and its directory must belong to.
    """

    def __init__(self, path: Path = DEFAULT_FILE, *, owner: int = 0) -> None:
        self.path = path
        self.owner = owner
        self._kept: tuple[tuple[int, ...], Bindings] | None = None

    def current(self) -> Bindings:
        """The table.

        Raises:
            BindingsBroken: as for `load_bindings`. What was read before does not count then.
        """
        try:
            seen = _stamp(os.stat(self.path, follow_symlinks=False))
        except OSError:
            seen = None
        if self._kept is not None and self._kept[0] == seen:
            # A change of the file's owner or permissions is in its stamp; one of its directory's is not.
            _check_directory(self.path, self.owner)
            return self._kept[1]
        text, stamp = _read(self.path, self.owner)
        bindings = parse_bindings(text, where=str(self.path))
        if stamp is not None:
            self._kept = stamp, bindings
        return bindings


def add_binding(path: Path, binding: Binding, *, owner: int = 0) -> None:
    """Add an entry at the end of the file, and leave the rest as it is. Makes the file, 0644, and its directory.

    Raises:
        BindingsBroken: The table is broken, or has an entry for the same already.
    """

    def append(text: str, entries: Sequence[Binding]) -> str:
        for entry in entries:
            if entry.key == binding.key:
                raise BindingsBroken(
                    f"there is an entry for this {binding.selector}: account {entry.account}",
                    where=f"{path}:{entry.line}",
                    hint="`jobbergate-flows worker unbind` removes it",
                )
        written = io.StringIO()
        _yaml().dump([binding.as_entry()], written)
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{written.getvalue()}"

    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _change(path, owner, append, lambda entries: [*entries, binding])


def remove_bindings(path: Path, which: Callable[[Binding], bool], *, owner: int = 0) -> tuple[Binding, ...]:
    """Remove the entries for which `which` is true, leave the rest as it is, and return what was removed.

    Raises:
        BindingsBroken: The table is broken.
    """
    removed: list[Binding] = []

    def cut(text: str, entries: Sequence[Binding]) -> str:
        removed.extend(entry for entry in entries if which(entry))
        lines = text.split("\n")
        ends = [entry.line - 1 for entry in entries[1:]] + [len(lines)]
        for entry, end in reversed(list(zip(entries, ends, strict=True))):
            if entry in removed:
                # Comments above the next entry are about that one.
                while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
                    end -= 1
                del lines[entry.line - 1 : end]
        return "\n".join(lines)

    if path.parent.is_dir():
        _change(path, owner, cut, lambda entries: [entry for entry in entries if not which(entry)])
    return tuple(removed)


def _change(
    path: Path,
    owner: int,
    change: Callable[[str, Sequence[Binding]], str],
    expected: Callable[[Sequence[Binding]], Sequence[Binding]],
) -> None:
    with locked(path.parent):
        text, _ = _read(path, owner)
        entries = parse_bindings(text, where=str(path)).entries
        changed = change(text, entries)
        # The file is edited as text, so that comments stay; what comes of it is read before it is written.
        by_hand = "edit the file: it is not written as this command writes it"
        try:
            found = parse_bindings(changed, where=str(path)).entries
        except BindingsBroken as error:
            raise BindingsBroken(
                f"the change would break it: {error.message}", where=str(path), hint=by_hand
            ) from error
        if [replace(entry, line=0) for entry in found] != [replace(entry, line=0) for entry in expected(entries)]:
            raise BindingsBroken("the change would change other entries too", where=str(path), hint=by_hand)
        if changed != text:
            replace_text(path, changed, mode=0o644)


def _asked(facts: RunFacts) -> Iterator[tuple[Selector, str]]:
    """What a run can be selected by, the most specific first."""
    if facts.deployment_id is not None:
        yield "deployment", facts.deployment_id
    if facts.deployment_name is not None:
        yield "deployment", facts.deployment_name
    if facts.work_queue is not None:
        yield "queue", f"{facts.work_pool}/{facts.work_queue}"
    if facts.created_by is not None and facts.created_by.is_signed_in:
        yield "created_by", facts.created_by.id
    yield "pool", facts.work_pool


def _selected(selector: Selector, value: str) -> str:
    if _UUID.fullmatch(value) and selector in ("deployment", "created_by"):
        return value.lower()
    if selector == "deployment" and not re.fullmatch(r"[^/]+/[^/]+", value):
        raise ValueError(f"{value!a} is no deployment: give its UUID, or flow/name")
    if selector == "queue" and not re.fullmatch(r"[^/]+/[^/]+", value):
        raise ValueError(f"{value!a} is no queue: give POOL/QUEUE")
    return value


def _entries(text: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        content = _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BindingsBroken(
            f"it is no YAML: {(error.problem or str(error)).splitlines()[0]}",
            where=f"{where}:{mark.line + 1}" if mark is not None else where,
            hint="mend it; nobody is let in before",
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise BindingsBroken(f"it is no YAML: {error}", where=where, hint="mend it; nobody is let in before") from error
    if content is None:
        return
    if not isinstance(content, CommentedSeq):
        raise BindingsBroken("it is no list of entries", where=f"{where}:1", hint="begin each entry with a dash")
    for position, entry in enumerate(content):
        line = content.lc.item(position)[0] + 1
        if not isinstance(entry, CommentedMap) or not all(isinstance(key, str) for key in entry):
            raise BindingsBroken(
                "the entry is no mapping of keys to values", where=f"{where}:{line}", hint="write `key: value` lines"
            )
        yield line, entry


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.width = 4096
    return yaml


def _read(path: Path, owner: int) -> tuple[str, tuple[int, ...] | None]:
    """The text and the stamp of what was read; an empty text without a file."""
    _check_directory(path, owner)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", None
    except OSError as error:
        linked = path.is_symlink()
        raise BindingsBroken(
            "it is a symbolic link" if linked else f"it cannot be read: {error.strerror}",
            where=str(path),
            hint="name the file itself" if linked else "the worker's account must be able to read it",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        try:
            check_file(found, owner=owner)
            text = decoded(file.read(MAX_BYTES + 1))
        except (ValueError, OSError) as error:
            raise _untrusted(error, path, owner) from error
    return text, _stamp(found)


def _check_directory(path: Path, owner: int) -> None:
    try:
        check_place(path, owner=owner)
    except (ValueError, OSError) as error:
        raise _untrusted(error, path, owner) from error


def _untrusted(error: ValueError | OSError, path: Path, owner: int) -> BindingsBroken:
    said = error.strerror if isinstance(error, OSError) else error
    who = "root" if owner == 0 else f"uid {owner}"
    return BindingsBroken(
        f"it cannot be trusted: {said}", where=str(path), hint=f"let it belong to {who}, and be writable by no one else"
    )


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size
