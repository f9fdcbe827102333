"""`app`: applications made, checked, rendered, run and deployed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobbergate_flows.cli.cluster import Access
from jobbergate_flows.cli.exits import BadInput, Exit, UsageError, say
from jobbergate_flows.cli.terminal import may_ask, print_json, print_table, progress

if TYPE_CHECKING:
    from jobbergate_flows.applications import Application
    from jobbergate_flows.applications.job_script import JobScript

Reference = Annotated[
    str,
    typer.Argument(metavar="APPLICATION", help="The application's folder, or git+URL@REF#FOLDER.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AnswersFile = Annotated[
    str | None,
    typer.Option("--answers", metavar="FILE", help="A JSON or YAML file of answers; - for standard input."),
]
Answers = Annotated[
    list[str] | None,
    typer.Option("--answer", metavar="NAME=VALUE", help="One answer, over those of the file. Repeatable."),
]
Fast = Annotated[bool, typer.Option("--fast", help="Take the defaults of all questions without an answer.")]
NoInput = Annotated[
    bool, typer.Option("--no-input", help="Never ask. Nothing is asked where standard input is no terminal.")
]
JobName = Annotated[str | None, typer.Option("--job-name", help="The job's name; otherwise the application's.")]

commands = typer.Typer(help="Applications: folders that become job scripts.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Applications: folders that become job scripts."""


@commands.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The folder, which is made.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The application's name; otherwise the folder's.")] = None,
) -> None:
    """Make a new application that works, to be changed."""
    from jobbergate_flows.applications.skeleton import create_application

    create_application(directory, name or directory.resolve().name)
    print(directory)
    say(f"Hint: `jobbergate-flows app render {shlex.quote(str(directory))} --fast` renders it")


@commands.command()
def check(application: Reference, as_json: AsJson = False) -> None:
    """Say everything that is wrong with an application; exit code 3 when something is."""
    from jobbergate_flows.cli.checking import check_application

    with progress("Checking the application"):
        result = check_application(application)
    if as_json:
        print_json(result.as_json())
    else:
        print_table(
            ["", "subject", "found"],
            [["ok" if line.ok else "NOT OK", line.subject, line.detail] for line in result.findings],
        )
        for line in result.findings:
            if line.hint:
                say(f"Hint: {line.hint}")
    raise typer.Exit(Exit.OK if result.ok else Exit.BAD_INPUT)


@commands.command()
def schema(
    application: Reference,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, which is what is printed anyway.")] = True,
) -> None:
    """Print the JSON Schema of an application's answers: its form."""
    with progress("Reading the questions"):
        form = _load(application).describe().form
    print_json(form)


@commands.command()
def render(
    application: Reference,
    answers: AnswersFile = None,
    answer: Answers = None,
    fast: Fast = False,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Put in as an #SBATCH line, as --sbatch=--time=5. Repeatable."),
    ] = None,
    job_name: JobName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the script and its supporting files here instead of printing the script."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    no_input: NoInput = False,
    as_json: AsJson = False,
) -> None:
    """Render an application's job script, and print it or write it with its supporting files."""
    from jobbergate_flows.slurm.directives import quoted
    from jobbergate_flows.slurm.options import parse_option_arguments

    parse_option_arguments(sbatch or [])
    loaded = _load(application)
    lines = [*(sbatch or ()), *([f"--job-name={quoted(job_name)}"] if job_name else ())]
    script = _render(loaded, _answers(loaded, answers, answer, fast, no_input), job_name, lines)
    written = _write(script, loaded, output, force) if output is not None else []
    if as_json:
        print_json(
            {
                "name": script.name,
                "digest": script.digest,
                "script": script.text,
                "files": dict(script.files),
                "written": [str(path) for path in written],
            }
        )
    elif output is not None:
        for path in written:
            print(path)
    else:
        sys.stdout.write(script.text)
        if script.files:
            say(f"Supporting files, written with --output: {', '.join(script.files)}")


@commands.command()
def run(
    application: Reference,
    answers: AnswersFile = None,
    answer: Answers = None,
    fast: Fast = False,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="An sbatch option, as --sbatch=--time=5. Repeatable."),
    ] = None,
    job_name: JobName = None,
    directory: Annotated[
        str,
        typer.Option(help="An existing directory; the job runs in a directory of its own below it."),
    ] = ".",
    in_place: Annotated[bool, typer.Option("--in-place", help="Run in the directory itself.")] = False,
    cluster: Access = "auto",
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's id once it is submitted, and do not follow it.")
    ] = False,
    no_input: NoInput = False,
) -> None:
    """Submit an application's job, without Prefect, and follow its states and output to its end.

    Exit code 0 when the job is Completed, otherwise 1. An interrupt leaves the job alone.
    """
    from jobbergate_flows.cli.following import run_job
    from jobbergate_flows.slurm.options import parse_option_arguments

    if not directory:
        raise UsageError("--directory is empty", hint="name a directory, or leave it out for this one")
    resources = parse_option_arguments(sbatch or [])
    loaded = _load(application)
    script = _render(loaded, _answers(loaded, answers, answer, fast, no_input), job_name, [])
    raise typer.Exit(
        run_job(
            script,
            resources,
            directory=Path(directory).expanduser().absolute(),
            in_place=in_place,
            access=cluster,
            detach=detach,
        )
    )


@commands.command()
def deploy(
    application: Reference,
    name: Annotated[str | None, typer.Option(help="The deployment's name; otherwise the application's.")] = None,
    pool: Annotated[str, typer.Option(help="The work pool.")] = "slurm",
    queue: Annotated[str | None, typer.Option(help="The pool's queue; otherwise its default.")] = None,
    answers: AnswersFile = None,
    answer: Answers = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="A default of the resources, as --sbatch=--time=5. Repeatable."),
    ] = None,
    directory: Annotated[str | None, typer.Option(help="The form's default directory.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag of the runs. Repeatable.")] = None,
    description: Annotated[str | None, typer.Option(help="Otherwise the application's README.")] = None,
    cron: Annotated[str | None, typer.Option(help="A schedule, as a cron expression.")] = None,
    interval: Annotated[float | None, typer.Option(help="A schedule, in seconds.", min=1)] = None,
    rrule: Annotated[str | None, typer.Option(help="A schedule, as an iCalendar rule.")] = None,
    timezone: Annotated[str, typer.Option(help="The schedule's time zone.")] = "UTC",
    paused: Annotated[bool, typer.Option("--paused", help="Leave the schedule switched off.")] = False,
    concurrency_limit: Annotated[
        int | None, typer.Option(min=1, help="How many runs may be queued or running at once.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(min=1, max=20, help="How often a job is submitted at most. 1: it is not retried.")
    ] = None,
    retry_on: Annotated[
        list[str] | None,
        typer.Option(help="After which end: out-of-memory, timeout, node-failure, preempted, failure. Repeatable."),
    ] = None,
    memory_ceiling: Annotated[str | None, typer.Option(help="The most memory that a retry asks for.")] = None,
    time_ceiling: Annotated[str | None, typer.Option(help="The longest time limit of a retry.")] = None,
    as_json: AsJson = False,
) -> None:
    """Deploy an application to a Prefect work pool, with its form in the Prefect UI.

    Answers, options and the directory that are given here are the form's defaults.
    """
    from jobbergate_flows.cli.answers import read_answers
    from jobbergate_flows.cli.server import server_errors
    from jobbergate_flows.slurm.options import parse_option_arguments

    given = read_answers(answers, answer or [])
    parameters: dict[str, Any] = {"answers": given} if given else {}
    if sbatch:
        parameters["resources"] = parse_option_arguments(sbatch).model_dump(exclude_defaults=True)
    if directory is not None:
        parameters["directory"] = directory
    retries = {"attempts": attempts, "on": retry_on, "memory_ceiling": memory_ceiling, "time_ceiling": time_ceiling}
    if any(retries.values()):
        parameters["retries"] = {name: value for name, value in retries.items() if value}
    loaded = _load(application)
    with progress("Deploying"), server_errors():
        from jobbergate_flows.deployments import deploy_application

        deployed = deploy_application(
            loaded,
            name=name,
            work_pool=pool,
            work_queue=queue,
            parameters=parameters,
            tags=tag or [],
            description=description,
            cron=cron,
            interval=interval,
            rrule=rrule,
            timezone=timezone,
            paused=paused,
            concurrency_limit=concurrency_limit,
        )
    if as_json:
        print_json({"id": deployed.id, "name": deployed.name, "application": deployed.application})
    else:
        print(deployed.name)
        say(f"Hint: `prefect deployment run {shlex.quote(deployed.name)}` starts a run")


def _load(reference: str) -> Application:
    from jobbergate_flows.applications import load_application

    with progress("Loading the application"):
        return load_application(reference)


def _answers(
    application: Application, file: str | None, pairs: Sequence[str] | None, fast: bool, no_input: bool
) -> dict[str, Any]:
    from jobbergate_flows.cli.answers import read_answers

    given = read_answers(file, pairs or [])
    if file is not None or fast or not may_ask(no_input):
        return given
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output

    from jobbergate_flows.applications.terminal import ask

    # Questions go to the terminal also when standard output, with the script, goes to a file.
    with create_app_session(output=create_output(always_prefer_tty=True)):
        return application.interview(given, ask=ask)


def _render(
    application: Application, answers: dict[str, Any], job_name: str | None, sbatch: Sequence[str]
) -> JobScript:
    with progress("Rendering"):
        return application.render(answers, job_name=job_name, sbatch=tuple(sbatch))


def _write(script: JobScript, application: Application, directory: Path, force: bool) -> list[Path]:
    """Write the script under its template's name and the supporting files under theirs; all of them or none."""
    own_name = Path(application.entrypoint).name.removesuffix(".j2").removesuffix(".jinja2")
    if own_name in script.files:
        raise BadInput(
            f"the script and a supporting file would both be {own_name}",
            where="jobbergate.yaml",
            hint="give the file another name in supporting_files_output_name",
        )
    texts = {directory / own_name: script.text} | {directory / name: text for name, text in script.files.items()}
    for path, text in texts.items():
        if path.exists() and not force and (not path.is_file() or path.read_bytes() != text.encode()):
            raise BadInput("the file exists and differs", where=str(path), hint="--force overwrites it")
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise BadInput(
                f"it cannot be written: {error.strerror}",
                where=str(error.filename or path),
                hint="name a folder that you may write to",
            ) from error
    return list(texts)
