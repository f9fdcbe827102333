"""The commands, put together.

The modules of the commands import what they need inside the commands: `--help` must not wait for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from jobbergate_flows import __version__
from jobbergate_flows.cli import app, blocks, cluster, consent, job, jobbergate, worker
from jobbergate_flows.cli.exits import Exit, report, say

commands = typer.Typer(
    name="jobbergate-flows",
    help="Slurm applications, from the command line and as Prefect flows.",
    epilog="Exit codes: 0 ok, 1 the job or run failed, 2 usage, 3 bad input, 4 cluster or server unreachable, "
    "70 an error of this program, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
commands.add_typer(app.commands, name="app")
commands.add_typer(job.commands, name="job")
commands.add_typer(cluster.commands, name="cluster")
commands.add_typer(blocks.commands, name="blocks")
commands.add_typer(consent.commands, name="consent")
commands.add_typer(jobbergate.commands, name="jobbergate")
commands.add_typer(worker.commands, name="worker")

_debug = False


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: Otherwise those of the process.
    """
    global _debug
    _debug = False
    try:
        code = commands(arguments, standalone_mode=False, prog_name="jobbergate-flows")
        sys.stdout.flush()
    except typer.TyperException as error:
        return _report_usage(error)
    except typer.Abort:
        say("Interrupted.")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except SystemExit as end:
        # Typer's own way with a reader that has gone is exit code 1.
        if isinstance(end.__context__, BrokenPipeError):
            return _unread()
        raise
    except Exception as error:
        return report(error, debug=_debug)
    if code == Exit.INTERRUPTED:
        say("Interrupted.")
    return int(code or Exit.OK)


def _unread() -> Exit:
    """Whoever read the output has gone: the interpreter must not fail on what is left of it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    return Exit.OK


@commands.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


@commands.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server and the worker running.")] = False,
    cluster: Annotated[
        Literal["local", "slurm"],
        typer.Option(help="`slurm`: the Slurm of this machine; `local`: processes of this machine."),
    ] = "local",
) -> None:
    """Start a Prefect server and a worker, run an example through a deployment, and follow it to its end."""
    from jobbergate_flows.cli.demo import DemoFailed, run_demo

    try:
        code = run_demo(keep=keep, cluster=cluster)
    except DemoFailed as error:
        report(error, debug=_debug)
        code = Exit.FAILED
    raise typer.Exit(code)


def _report_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "jobbergate-flows"
    message = error.format_message()
    if message:
        say(f"Error: {message}")
        say(f"Hint: `{command} --help` says what there is")
    return error.exit_code
