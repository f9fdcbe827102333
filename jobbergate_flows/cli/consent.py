"""`consent`: what a user allows to run as them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobbergate_flows.cli.exits import BadInput, Exit, UsageError, say
from jobbergate_flows.cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from agent_worker.identity.consent import ConsentLine

commands = typer.Typer(help="What you allow to run as you.", no_args_is_help=True)

File = Annotated[
    Path | None,
    typer.Option("--file", help="Otherwise ~/.config/jobbergate-flows/authorized_deployments, which the worker reads."),
]
Limit = Annotated[str | None, typer.Option(help="The most that a job may ask for; it must then say it.")]
Count = Annotated[int | None, typer.Option(min=0, help="The most that a job may ask for; it must then say it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@commands.callback()
def _group() -> None:
    """What you allow to run as you."""


@commands.command()
def add(
    deployment: Annotated[
        str | None,
        typer.Argument(metavar="[DEPLOYMENT]", help="The deployment: its UUID, or FLOW/NAME.", show_default=False),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Allow exactly what this run asks for, once it was shown.")
    ] = None,
    application: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="The application: sha256:..., as `app check` prints it.")
    ] = None,
    answers_any: Annotated[
        bool,
        typer.Option(
            "--answers-any", help="Any answers: whoever can write to the Prefect API can then run code as you."
        ),
    ] = False,
    flows_any: Annotated[
        bool,
        typer.Option(
            "--flows-any", help="Ordinary flows: whoever can write to the Prefect API can then run code as you."
        ),
    ] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="2026-12-31 (UTC), or a time with its zone.")
    ] = None,
    max_nodes: Count = None,
    max_tasks: Count = None,
    max_cpus: Count = None,
    max_memory: Limit = None,
    max_gpus: Count = None,
    max_time: Limit = None,
    max_array: Count = None,
    partition: Annotated[str | None, typer.Option(metavar="A|B", help="Only in these partitions.")] = None,
    account: Annotated[str | None, typer.Option(metavar="A|B", help="Only charged to these accounts.")] = None,
    render: Annotated[
        bool | None,
        typer.Option(
            "--render/--no-render",
            help="With --run: show the job script. That runs the application's jobbergate.py as you; asked otherwise.",
        ),
    ] = None,
    source: Annotated[bool, typer.Option("--source", help="With --run: show the application's files.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --run: do not ask.")] = False,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Allow a deployment's application, or exactly what one run asks for (--run), to run as you."""
    from agent_worker.identity.consent import add as add_line
    from agent_worker.identity.consent import parse_line, write_line

    limits = {
        "expires": expires,
        "max-nodes": max_nodes,
        "max-tasks": max_tasks,
        "max-cpus": max_cpus,
        "max-memory": max_memory,
        "max-gpus": max_gpus,
        "max-time": max_time,
        "max-array": max_array,
        "partition": partition,
        "account": account,
    }
    options = {name: str(value) for name, value in limits.items() if value is not None}
    if (run is None) == (deployment is None):
        raise UsageError("give either a deployment or --run", hint="`jobbergate-flows consent add --help` says more")
    if run is not None:
        if application is not None or answers_any or flows_any:
            raise UsageError(
                "--run allows exactly what the run asks for",
                hint="leave --application, --answers-any and --flows-any out, or name the deployment",
            )
        line = _line_of_run(run, options, render=render, source=source, yes=yes)
        if line is None:
            say("Nothing was allowed.")
            raise typer.Exit(Exit.FAILED)
    else:
        assert deployment is not None
        options |= {"answers": "any"} if answers_any else {}
        options |= {"flows": "any"} if flows_any else {}
        if not answers_any and not flows_any:
            raise UsageError(
                "a deployment alone does not say which answers are allowed",
                hint="`consent add --run ID` allows what one run asks for; --answers-any allows everything",
            )
        digest = None if application is None else application.rpartition("@")[2]
        line = write_line(deployment, application=digest, options=options)
    parsed = parse_line(line)
    if parsed is not None and parsed.expires is not None and parsed.expires <= datetime.now(UTC):
        raise BadInput(f"--expires {expires} is over: it would allow nothing", hint="give a time to come")
    add_line(_path(file), line)
    if as_json:
        print_json({"file": _path(file), "line": line})
    else:
        print(line)


@commands.command(name="list")
def list_lines(file: File = None, as_json: AsJson = False) -> None:
    """List what you allow. Lines that cannot be read allow nothing, and are told."""
    from agent_worker.identity.consent import read

    found = read(_path(file))
    if as_json:
        problems = [{"where": problem.where, "message": problem.message} for problem in found.problems]
        print_json({"lines": [_as_json(line) for line in found.lines], "problems": problems})
        return
    print_table(
        ["line", "deployment", "application", "request", "options", "comment"],
        [
            [
                line.number,
                line.deployment,
                line.application,
                line.request,
                ",".join(f"{name}={value}" for name, value in line.options.items()),
                line.comment,
            ]
            for line in found.lines
        ],
    )
    for problem in found.problems:
        say(f"NOT OK: {problem.where}: {problem.message}")


@commands.command()
def remove(
    deployment: Annotated[
        str | None,
        typer.Argument(metavar="[DEPLOYMENT]", help="The deployment, as the line has it.", show_default=False),
    ] = None,
    application: Annotated[str | None, typer.Option(metavar="DIGEST", help="Only lines with this digest.")] = None,
    line: Annotated[int | None, typer.Option(min=1, help="The line of this number, as `consent list` has it.")] = None,
    file: File = None,
) -> None:
    """Take back what you allow. Runs that go on already are not touched."""
    from agent_worker.identity.consent import remove as remove_lines

    if (deployment is None) == (line is None):
        raise UsageError("give either a deployment or --line", hint="`jobbergate-flows consent list` shows them")
    digest = None if application is None else application.rpartition("@")[2]

    def fits(entry: ConsentLine) -> bool:
        if line is not None:
            return entry.number == line
        assert deployment is not None
        return entry.deployment in (deployment, deployment.lower()) and digest in (None, entry.application)

    removed = remove_lines(_path(file), fits)
    if not removed:
        raise BadInput(
            "no line is like that", where=str(_path(file)), hint="`jobbergate-flows consent list` shows those that are"
        )
    for entry in removed:
        print(f"line {entry.number}: {entry.deployment} {entry.application or ''}".rstrip())


def _line_of_run(run: str, options: dict[str, str], *, render: bool | None, source: bool, yes: bool) -> str | None:
    """The line that allows what a run asks for, once its user has seen it; None when they do not allow it."""
    from agent_worker.identity.consent import write_line
    from agent_worker.identity.facts import request_hash
    from jobbergate_flows.cli.asking import ask, read_run, script_of_run, show_application, show_run
    from jobbergate_flows.cli.terminal import may_ask

    asks = may_ask(no_input=yes)
    if not asks and not yes:
        raise UsageError("nobody is there to be asked", hint="call it on a terminal, or with --yes")
    read, application = read_run(run)
    facts = read.facts
    if facts.kind == "flow":
        raise BadInput(
            "the run is of an ordinary flow, whose code nothing pins",
            where=f"flow run {facts.flow_run_id}",
            hint=f"`jobbergate-flows consent add '{facts.deployment_id}' --flows-any` allows all code in it",
        )
    if facts.application is None or facts.deployment_id is None:
        raise BadInput(
            "the run names no application", where=f"flow run {facts.flow_run_id}", hint="deploy the application again"
        )
    show_run(read)
    if application is not None:
        show_application(application, source=source)
        if render is None and asks:
            render = ask("Show the job script? That runs the jobbergate.py above as you.")
        if render:
            script_of_run(application, facts)
    if not yes and not ask(f"Allow exactly this to run as you ({_who()})?"):
        return None
    return write_line(
        facts.deployment_id,
        application=facts.application,
        request=request_hash(facts),
        options=options,
        comment=f"{facts.deployment_name}, run {facts.flow_run_id}",
    )


def _as_json(line: ConsentLine) -> dict[str, Any]:
    return {
        "line": line.number,
        "deployment": line.deployment,
        "application": line.application,
        "request": line.request,
        "options": dict(line.options),
        "comment": line.comment,
    }


def _path(file: Path | None) -> Path:
    from agent_worker.identity.consent import PLACE

    return file or Path.home() / PLACE


def _who() -> str:
    import getpass

    return getpass.getuser()
