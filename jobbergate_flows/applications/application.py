"""An application: its files, by their content."""

from __future__ import annotations

import ast
import datetime
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, Protocol

import jinja2
from pydantic import ValidationError

from jobbergate_flows.applications.config import (
    FILE,
    TEMPLATE_SUFFIXES,
    ApplicationConfig,
    find_templates,
    parse_config,
    result_patterns,
)
from jobbergate_flows.applications.errors import BadAnswer, DigestMismatch, LoadingError, RenderingError
from jobbergate_flows.applications.isolation import Limits, Serve, nonsense, run_elsewhere, run_isolated
from jobbergate_flows.applications.job_script import JobScript
from jobbergate_flows.applications.sources import pack, read_folder, read_git, unpack
from jobbergate_flows.slurm.directives import inject_sbatch_params, parse_directives

if TYPE_CHECKING:
    from jobbergate_flows.jobbergate.client import JobbergateClient
    from jobbergate_flows.jobbergate.models import JobScriptTemplateDetails

WORKFLOW = "jobbergate.py"
READMES = ("README.md", "README.rst", "README.txt", "README")
_RENDERED: Mapping[str, type | UnionType] = {"text": str, "name": str | None, "files": dict}


class ApiBlock(Protocol):
    """A `JobbergateAPI` block."""

    def client(self) -> JobbergateClient:
        """A client of its API."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, for whoever asks it.

    Args:
        kind: Its type: `Text`, `Integer`, `List`, ...
        variable: What its answer is called.
        message: What to ask, formatted.
        default: The answer when none is given; None for none.
        choices: Label and value of each, of a `List` or `Checkbox`.
        minimum, maximum: Of an `Integer`; None for no limit.
    """

    kind: str
    variable: str
    message: str
    default: Any = None
    choices: tuple[tuple[str, Any], ...] = ()
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class ApplicationInterface:
    """What an application asks for.

    Args:
        form: The JSON Schema (draft 2020-12) of the answers.
        complete: Whether every branch was followed to its end; if not, the interview may ask for more.
        directives: The parameters of the job script template's `#SBATCH` lines, as written: those that stand there
            whatever is answered.
        faults: What is wrong with questions: one that nobody can answer, a default that is no answer.
    """

    form: dict[str, Any]
    complete: bool
    directives: tuple[str, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Application:
    """An application, content-addressed: two with the same files have the same digest.

    Args:
        name: Of the flow and, without another, of the job.
        files: Path -> content.
        source: Where it was loaded from: a path, or a git reference with its commit.
        config: What `jobbergate.yaml` says.
        entrypoint: The job script's template.
        supporting: Template -> output name.
        result_files: The patterns of a job's files that are its results.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    source: str
    config: ApplicationConfig = field(repr=False)
    entrypoint: str
    supporting: Mapping[str, str]
    result_files: tuple[str, ...] = ()

    @classmethod
    def load(cls, reference: str | Path, *, remote: bool = False) -> Application:
        """The application of a folder, or of `git+URL@REF#FOLDER`.

        Args:
            reference: The folder, or the reference.
            remote: Only `git+https://` and `git+ssh://`: nothing of this host.

        Raises:
            LoadingError: with the file, the line and the mend: a missing folder or file, bad YAML, unknown or wrong
                keys, bad Python, a template that does not parse or is not there, no or several entrypoints, a file
                outside the application, too many bytes.
            SourceError: git cannot fetch it, or is not to.
        """
        if remote or (isinstance(reference, str) and reference.startswith("git+")):
            files, source, name = read_git(str(reference), remote=remote)
            return cls.from_files(files, name=name, source=source)
        return cls.from_path(reference)

    @classmethod
    def from_path(cls, path: str | Path, name: str | None = None) -> Application:
        """The application of a folder, named after it if not otherwise.

        Raises:
            LoadingError: as for `load`.
        """
        folder = Path(path).expanduser()
        return cls.from_files(read_folder(folder), name=name or folder.absolute().name, source=str(path))

    @classmethod
    def from_archive(cls, data: bytes, *, name: str, source: str = "archive", digest: str | None = None) -> Application:
        """The application of what `archive` gave.

        Raises:
            DigestMismatch: Its digest is not `digest`.
            SourceError: It is no archive, or holds more than an application may.
            LoadingError: as for `load`.
        """
        files = unpack(data, source)
        if digest is not None and (found := _digest(files)) != digest:
            raise DigestMismatch(
                f"the application has digest {found}, not {digest}", where=source, hint="deploy the application again"
            )
        return cls.from_files(files, name=name, source=source)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, name: str, source: str) -> Application:
        """The application of these files.

        Raises:
            LoadingError: as for `load`.
        """
        for needed in (FILE, WORKFLOW):
            if needed not in files:
                raise LoadingError(f"there is no {needed}", where=source, hint=f"an application needs a {needed}")
        if not any(path.endswith(TEMPLATE_SUFFIXES) for path in files):
            raise LoadingError("there is no template", where=source, hint="add the job script as templates/job.sh.j2")
        text = _text(files, FILE)
        config = parse_config(text)
        patterns = result_patterns(config, text)
        entrypoint, supporting = find_templates(config, files, text)
        for template in (entrypoint, *supporting):
            _parse_template(template, _text(files, template))
        _check_workflow(files[WORKFLOW])
        return cls(
            name=re.sub(r"[^\w.-]+", "-", name).strip("-.") or "application",
            files=MappingProxyType(dict(files)),
            source=source,
            config=config,
            entrypoint=entrypoint,
            supporting=MappingProxyType(supporting),
            result_files=patterns,
        )

    @classmethod
    def from_jobbergate(cls, api: JobbergateClient | ApiBlock, identifier: int | str) -> Application:
        """The application that a Jobbergate API has under an id or an identifier.

        Args:
            api: A `JobbergateAPI` block, or a client of the API.

        Raises:
            LoadingError: as for `load`; it has no `jobbergate.py` there.
            JobbergateApiError, AuthenticationError: It cannot be had; with the API's own words.
        """
        from jobbergate_flows.jobbergate import applications

        with _client_of(api) as client:
            return client.perform(applications.load(identifier, client.base_url))

    @classmethod
    async def afrom_jobbergate(cls, api: JobbergateClient | ApiBlock, identifier: int | str) -> Application:
        """See `from_jobbergate`."""
        from jobbergate_flows.jobbergate import applications

        async with _client_of(api) as client:
            return await client.aperform(applications.load(identifier, client.base_url))

    def publish_to_jobbergate(
        self, api: JobbergateClient | ApiBlock, *, identifier: str | None = None, name: str | None = None
    ) -> JobScriptTemplateDetails:
        """Put the application into a Jobbergate API: a new entry, or another content of the one with that identifier.

        Args:
            api: A `JobbergateAPI` block, or a client of the API.
            identifier: Otherwise the application's name.
            name: Otherwise the application's name too.

        Returns:
            The entry, as the API has it then.

        Raises:
            LoadingError: It holds what Jobbergate has no place for: files that are no templates, or two of one name.
            JobbergateApiError, AuthenticationError: The entry is somebody else's, or the API cannot be reached.
        """
        from jobbergate_flows.jobbergate import applications

        with _client_of(api) as client:
            return client.perform(applications.publish(self, identifier=identifier, name=name))

    async def apublish_to_jobbergate(
        self, api: JobbergateClient | ApiBlock, *, identifier: str | None = None, name: str | None = None
    ) -> JobScriptTemplateDetails:
        """See `publish_to_jobbergate`."""
        from jobbergate_flows.jobbergate import applications

        async with _client_of(api) as client:
            return await client.aperform(applications.publish(self, identifier=identifier, name=name))

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hex digest over paths and contents."""
        return _digest(self.files)

    @property
    def description(self) -> str:
        """The README's text; empty without one."""
        texts = (self.files[name].decode(errors="replace").strip() for name in READMES if name in self.files)
        return next(texts, "")

    def archive(self) -> bytes:
        """The files as tar.gz, the same bytes for the same files."""
        return pack(self.files)

    def describe(self, *, limits: Limits | None = None) -> ApplicationInterface:
        """What the application asks for, found by following its branches in a separate process; kept once found.

        Args:
            limits: What the application's code may take.

        Raises:
            ApplicationError: Its code fails before the first question, or takes more than it may.
        """
        kept: ApplicationInterface | None = self.__dict__.get("_interface")
        if kept is None:
            wants = {"form": dict, "complete": bool, "faults": list}
            found = self._isolated("describe", wants, limits=limits)
            faults = tuple(str(fault) for fault in found["faults"])
            kept = ApplicationInterface(found["form"], found["complete"], self._directives(), faults)
            self.__dict__["_interface"] = kept
        return kept

    def render(
        self,
        answers: Mapping[str, Any] | None = None,
        *,
        job_name: str | None = None,
        sbatch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> JobScript:
        """Replay the interview with the answers, and render the job script and its supporting files.

        Args:
            answers: Variable -> answer. What is missing, or None, takes its default; nobody is ever asked.
            job_name: The script's name; otherwise the application's `job_script_name`, or its own name.
            sbatch: Parameters to inject as `#SBATCH` lines, such as `--time=5`.
            limits: What the application's code may take.

        Raises:
            MissingAnswer, UnknownAnswer, BadAnswer: naming the question.
            RenderingError: naming the template and the line.
            InterviewError, LoadingError: The application's code fails; naming its line.
            LimitExceeded: It took more than it may.
            OptionRefused: One of `sbatch` is no option.
        """
        done = run_isolated(self._rendering(answers), self.files, wants=_RENDERED, limits=limits)
        return self._job_script(done, job_name, sbatch)

    async def render_elsewhere(
        self,
        serve: Serve,
        answers: Mapping[str, Any] | None = None,
        *,
        job_name: str | None = None,
        sbatch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> JobScript:
        """`render`, with the application's code in a process that `serve` has: another account's."""
        done = await run_elsewhere(serve, self._rendering(answers), self.files, wants=_RENDERED, limits=limits)
        return self._job_script(done, job_name, sbatch)

    def check_answers(self, answers: Mapping[str, Any], *, limits: Limits | None = None) -> dict[str, Any]:
        """The answers as their questions take them: `"3"` becomes a number. They need not be all.

        Raises:
            UnknownAnswer, BadAnswer: naming the question.
            ApplicationError: as for `describe`.
        """
        done = self._isolated("check", {"answers": dict}, limits=limits, answers=_plain_answers(answers))
        checked: dict[str, Any] = done["answers"]
        return checked

    def interview(
        self,
        answers: Mapping[str, Any] | None = None,
        *,
        fast: bool = False,
        ask: Callable[[Question, str | None], Any] | None = None,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        """Ask the questions that `answers` leaves open, until each has a good answer.

        Args:
            answers: Variable -> answer: not asked.
            fast: Take defaults without asking, and ask only what has none.
            ask: Asks one question; gets the complaint about the answer before, or None. None as the answer stands
                for the default. Otherwise the terminal is asked.
            limits: What the application's code may take between two questions.

        Returns:
            The answers given, ready for `render`.

        Raises:
            ApplicationError: as for `render`, and what `ask` raises.
        """
        if ask is None:
            from jobbergate_flows.applications import terminal

            ask = terminal.ask
        asker = ask

        def put(described: Mapping[str, Any], complaint: str | None) -> Any:
            try:
                choices = tuple((label, value) for label, value in described.get("choices", ()))
                question = Question(**{**described, "choices": choices})
            except (TypeError, ValueError) as error:
                raise nonsense() from error
            return asker(question, complaint)

        done = self._isolated(
            "interview", {"answers": dict}, limits=limits, ask=put, answers=_plain_answers(answers), fast=fast
        )
        given: dict[str, Any] = done["answers"]
        return given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Application) and (self.name, self.digest) == (other.name, other.digest)

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_files, (dict(self.files), self.name, self.source)

    def _rendering(self, answers: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "do": "render",
            "config": self.config.as_read(),
            "answers": _plain_answers(answers),
            "entrypoint": self.entrypoint,
            "supporting": dict(self.supporting),
        }

    def _job_script(self, done: Mapping[str, Any], job_name: str | None, sbatch: Sequence[str]) -> JobScript:
        text = done["text"]
        if not text.startswith("#!"):
            raise RenderingError(
                "the rendered script does not begin with #!",
                where=f"{self.entrypoint}:1",
                hint="begin the template with #!/bin/bash: sbatch wants it",
            )
        if not text.endswith("\n"):
            text += "\n"
        try:
            return JobScript(
                name=job_name or done["name"] or self.name,
                text=inject_sbatch_params(text, sbatch),
                files=done["files"],
                result_files=self.result_files,
            )
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RenderingError(f"what it renders to is no job script: {said}", where=self.entrypoint) from error

    def _isolated(
        self,
        do: str,
        wants: Mapping[str, type | UnionType],
        *,
        limits: Limits | None,
        ask: Callable[[Mapping[str, Any], str | None], Any] | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        request = {"do": do, "config": self.config.as_read(), **rest}
        return run_isolated(request, self.files, wants=wants, limits=limits, ask=ask)

    def _directives(self) -> tuple[str, ...]:
        template = _parse_template(self.entrypoint, _text(self.files, self.entrypoint))
        # What a template says in a block depends on answers, and so does a line with an expression.
        fixed = "".join(
            part.data if isinstance(part, jinja2.nodes.TemplateData) else "{{}}"
            for node in template.body
            if isinstance(node, jinja2.nodes.Output)
            for part in node.nodes
        )
        return tuple(line for line in parse_directives(fixed).raw if "{{}}" not in line)


load_application = Application.load


def _client_of(api: JobbergateClient | ApiBlock) -> JobbergateClient | nullcontext[JobbergateClient]:
    """A client for a `with`, which closes the block's, and leaves the caller's own as it is."""
    from jobbergate_flows.jobbergate.client import JobbergateClient

    return nullcontext(api) if isinstance(api, JobbergateClient) else api.client()


def _from_files(files: Mapping[str, bytes], name: str, source: str) -> Application:
    return Application.from_files(files, name=name, source=source)


def _plain_answers(answers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The answers in types that the other process knows too."""
    plain = {}
    if not isinstance(answers, Mapping | None):
        raise BadAnswer(
            f"the answers are {type(answers).__name__}, no mapping",
            where="answers",
            hint='map the questions\' names to answers, as {"steps": 10}',
        )
    for name, value in (answers or {}).items():
        try:
            plain[str(name)] = _plain(value)
        except (TypeError, RecursionError) as error:
            raise BadAnswer(
                f"{value!r:.100} is no answer",
                where=f"answers.{name}",
                hint="answer with text, a number, yes or no, or a list",
            ) from error
    return plain


def _plain(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            # Without the class of its own that an enumeration's member has.
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case os.PathLike():
            return os.fspath(value)
        case datetime.date() | datetime.time():
            # YAML's dates.
            return str(value)
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} is no type of an answer")


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        for part in (path.encode(), files[path]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _text(files: Mapping[str, bytes], path: str) -> str:
    try:
        return files[path].decode()
    except UnicodeDecodeError as error:
        line = files[path][: error.start].count(b"\n") + 1
        raise LoadingError("the file is not UTF-8 text", where=f"{path}:{line}", hint="save it as UTF-8") from error


def _parse_template(path: str, text: str) -> jinja2.nodes.Template:
    environment = jinja2.Environment()
    try:
        template = environment.parse(text)
        # Not compiled to find them: that computes what is constant, `{{ 2 ** 2 ** 40 }}` too, here and without a limit.
        for kind, node_type, known in (
            ("filter", jinja2.nodes.Filter, environment.filters),
            ("test", jinja2.nodes.Test, environment.tests),
        ):
            for node in template.find_all(node_type):
                if node.name not in known:
                    raise jinja2.TemplateSyntaxError(f"there is no {kind} {node.name!r}", node.lineno)
        return template
    except jinja2.TemplateSyntaxError as error:
        raise LoadingError(
            f"the template does not parse: {error.message}", where=f"{path}:{error.lineno}", hint="mend the template"
        ) from error
    except RecursionError as error:
        raise LoadingError("the template is nested too deeply", where=path, hint="nest it less") from error


def _check_workflow(source: bytes) -> None:
    """What can be said of `jobbergate.py` without running it."""
    try:
        tree = ast.parse(source, WORKFLOW)
    except SyntaxError as error:
        where = f"{WORKFLOW}:{error.lineno}" if error.lineno else WORKFLOW
        raise LoadingError(f"does not load: {error.msg}", where=where, hint="mend the Python") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise LoadingError(f"does not load: {error}", where=WORKFLOW, hint="mend the Python") from error
    derives = any(isinstance(node, ast.ClassDef) and node.bases for node in ast.walk(tree))
    if not derives and b"JobbergateApplication" not in source.replace(b"JobbergateApplicationBase", b""):
        raise LoadingError(
            "defines no application class",
            where=WORKFLOW,
            hint="define class JobbergateApplication(JobbergateApplicationBase) with a method mainflow(self, data)",
        )
