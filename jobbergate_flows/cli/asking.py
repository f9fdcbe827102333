"""What a user sees of a run before they allow it, and the question itself. Imports Prefect where it reads the run.

All of it comes from others: what could draw on the terminal, or hide there, is shown escaped. It goes to standard
error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID

import typer

from jobbergate_flows.applications.errors import ApplicationError
from jobbergate_flows.cli.exits import UsageError, say
from jobbergate_flows.cli.terminal import progress

if TYPE_CHECKING:
    from agent_worker.identity.facts import RunFacts
    from agent_worker.run_facts import ReadRun
    from jobbergate_flows.applications import Application


def read_run(word: str) -> tuple[ReadRun, Application | None]:
    """A run as the Prefect server has it, and its application where that can be loaded. None of its code runs.

    Raises:
        UsageError: The word is no id.
        ServerUnreachable, BadInput: as for `server_errors`.
        RequestRefused: The run's parameters are of types that they cannot have.
    """
    try:
        run_id = UUID(word)
    except ValueError as error:
        raise UsageError(f"{word!a} is no run's id", hint="it is in the run's message, and in its address") from error
    with progress("Reading the run"):
        return _read(run_id)


def show_run(read: ReadRun) -> None:
    """Show what a run asks for."""
    from agent_worker.identity.facts import request_hash

    facts = read.facts
    # The answers are escaped by JSON itself.
    for name, value in {
        "run": facts.flow_run_id,
        "deployment": f"{visible(facts.deployment_name or '')} ({facts.deployment_id})",
        "application": visible(read.pin or ""),
        "created by": visible(_creator(facts)),
        "directory": visible(facts.directory),
        "job name": visible(facts.job_name or "(the application's own)"),
        "request": request_hash(facts),
        "answers": json.dumps(facts.answers, indent=2),
        "resources": json.dumps(facts.resources, indent=2),
    }.items():
        say(f"{name:<12} {value}")


def show_application(application: Application, *, source: bool) -> None:
    """Show an application's files; what is in them where `source` is true."""
    say(f"{'files':<12} {', '.join(visible(path) for path in sorted(application.files))}")
    if source:
        for path in sorted(application.files):
            say(f"---- {visible(path)}")
            say(visible(application.files[path].decode(errors="backslashreplace"), lines=True))


def script_of_run(application: Application, facts: RunFacts) -> None:
    """Render the job script and show it. The application's code runs, in a process of its own."""
    try:
        with progress("Rendering"):
            script = application.render(facts.answers, job_name=facts.job_name or None)
    except ApplicationError as error:
        say(f"The job script cannot be rendered: {visible(str(error))}")
        return
    for path, text in {"job script": script.text, **script.files}.items():
        say(f"---- {visible(path)}")
        say(visible(text, lines=True))
    say("----")


def ask(question: str) -> bool:
    """Ask for yes or no; anything else than yes is no."""
    return typer.confirm(question, default=False, err=True)


def visible(text: str, *, lines: bool = False) -> str:
    """The text with all that is not printable ASCII escaped, so that nothing hides and nothing looks like something
    else.

    Args:
        lines: Whether line ends and tabs stay.
    """
    keep = "\n\t" if lines else ""
    return "".join(
        letter if " " <= letter <= "~" or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _read(run_id: UUID) -> tuple[ReadRun, Application | None]:
    from prefect.client.orchestration import get_client
    from prefect.utilities.asyncutils import run_coro_as_sync

    from agent_worker.run_facts import read_run_facts
    from jobbergate_flows.blocks.application import aload_application
    from jobbergate_flows.cli.server import server_errors
    from jobbergate_flows.errors import JobbergateFlowsError

    async def read() -> tuple[ReadRun, Application | None]:
        async with get_client() as client:
            flow_run = await client.read_flow_run(run_id)
            found = await read_run_facts(client, flow_run, work_pool=flow_run.work_pool_name or "")
        if found.pin is None:
            return found, None
        try:
            return found, await aload_application(found.pin)
        except JobbergateFlowsError as error:
            say(f"The application cannot be loaded: {visible(str(error))}")
            return found, None

    with server_errors():
        done = run_coro_as_sync(read())
    assert done is not None
    return done


def _creator(facts: RunFacts) -> str:
    creator = facts.created_by
    if creator is None:
        return "nobody knows"
    known = "" if creator.is_signed_in else ", which anybody could have written"
    return f"{creator.type} {creator.display_value} ({creator.id}){known}"
