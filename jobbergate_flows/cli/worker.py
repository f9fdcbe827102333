"""`worker`: what an administrator sets up for a worker that acts for several people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobbergate_flows.cli.exits import BadInput, UsageError, say
from jobbergate_flows.cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from agent_worker.identity.bindings import Binding

commands = typer.Typer(help="A worker that acts for several people: whose runs are whose.", no_args_is_help=True)

Table = Annotated[Path, typer.Option("--file", help="The table; the worker reads only one of root's.")]
Deployment = Annotated[str | None, typer.Option(help="Runs of this deployment: its UUID, or FLOW/NAME.")]
Application = Annotated[
    str | None,
    typer.Option(metavar="DIGEST", help="The deployment's application: sha256:..., as `app check` prints it."),
]
Queue = Annotated[str | None, typer.Option(metavar="POOL/QUEUE", help="Runs that come by this queue.")]
Creator = Annotated[str | None, typer.Option(metavar="ID", help="Runs of who has this id on Prefect Cloud.")]
Pool = Annotated[str | None, typer.Option(help="All runs of this work pool.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DEFAULT = Path("/etc/jobbergate-flows/bindings.yaml")


@commands.callback()
def _group() -> None:
    """A worker that acts for several people: whose runs are whose."""


@commands.command()
def bind(
    account: Annotated[str, typer.Option(help="The Unix account that the runs are of.", show_default=False)],
    deployment: Deployment = None,
    application: Application = None,
    queue: Queue = None,
    created_by: Creator = None,
    pool: Pool = None,
    flows_any: Annotated[
        bool,
        typer.Option("--flows-any", help="Ordinary flows too: whoever can write to the API runs any code as them."),
    ] = False,
    file: Table = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Bind runs to an account: those of a deployment with its application, of a queue, of a person, or of a pool.

    A running worker sees it at once. The most specific entry that fits a run decides.
    """
    import pwd

    from agent_worker.identity.bindings import add_binding, make_binding

    values = {
        "deployment": deployment,
        "queue": queue,
        "created_by": created_by,
        "pool": pool,
        "application": _digest(application),
        "flows": "any" if flows_any else None,
        "account": account,
    }
    try:
        binding = make_binding({name: value for name, value in values.items() if value is not None})
    except ValueError as error:
        raise UsageError(str(error), hint="`jobbergate-flows worker bind --help` says what there is") from error
    add_binding(file, binding, owner=_owner(file))
    try:
        if pwd.getpwnam(account).pw_uid == 0:
            say(f"Hint: {account} is root, for whom no worker acts: these runs will fail")
    except KeyError:
        say(f"Hint: there is no account {account} on this host")
    if as_json:
        print_json(binding.as_entry())
    else:
        print(f"{binding.selector} {binding.value} -> {account}")


@commands.command()
def unbind(
    deployment: Deployment = None,
    application: Application = None,
    queue: Queue = None,
    created_by: Creator = None,
    pool: Pool = None,
    account: Annotated[str | None, typer.Option(help="All that is bound to this account.")] = None,
    file: Table = _DEFAULT,
) -> None:
    """Remove what was bound. Runs that go on already are not touched.

    With several options, only what all of them fit is removed.
    """
    from agent_worker.identity.bindings import remove_bindings

    wanted = {"deployment": deployment, "queue": queue, "created_by": created_by, "pool": pool}
    digest = _digest(application)
    if not any((*wanted.values(), account, digest)):
        raise UsageError(
            "nothing says what to unbind", hint="`jobbergate-flows worker unbind --help` says what there is"
        )

    def fits(binding: Binding) -> bool:
        return (
            all(
                value is None or (binding.selector == selector and binding.value in (value, value.lower()))
                for selector, value in wanted.items()
            )
            and account in (None, binding.account)
            and digest in (None, binding.application)
        )

    removed = remove_bindings(file, fits, owner=_owner(file))
    if not removed:
        raise BadInput(
            "nothing like that is bound", where=str(file), hint="`jobbergate-flows worker bindings` lists all"
        )
    for binding in removed:
        print(f"{binding.selector} {binding.value} -> {binding.account}")


@commands.command()
def bindings(file: Table = _DEFAULT, as_json: AsJson = False) -> None:
    """List what is bound, in the file's order."""
    from agent_worker.identity.bindings import load_bindings

    found = load_bindings(file, owner=_owner(file)).entries
    if as_json:
        print_json([{**entry.as_entry(), "line": entry.line} for entry in found])
        return
    print_table(
        ["line", "selector", "value", "application", "flows", "account"],
        [
            [entry.line, entry.selector, entry.value, entry.application, "any" if entry.any_flow else "", entry.account]
            for entry in found
        ],
    )


@commands.command()
def unit(
    mode: Annotated[
        Literal["none", "sudo", "root"],
        typer.Option(help="How it acts for its users: as itself, by sudo, or as root that drops its privileges."),
    ] = "none",
    account: Annotated[str, typer.Option(help="The worker's own account.")] = "jobbergate-worker",
    pool: Annotated[str, typer.Option(help="The work pool that it serves.")] = "slurm",
    prefix: Annotated[
        Path | None, typer.Option(help="The virtual environment; otherwise the one of this command.")
    ] = None,
) -> None:
    """Print a systemd unit for the worker, as hardened as the mode allows."""
    from agent_worker.unit import unit_text

    print(unit_text(account=account, pool=pool, prefix=str(prefix or sys.prefix), mode=mode), end="")


@commands.command()
def sudoers(
    group: Annotated[str, typer.Option(help="The worker acts for the members of this group.", show_default=False)],
    account: Annotated[str, typer.Option(help="The worker's own account.")] = "jobbergate-worker",
    deputy: Annotated[str | None, typer.Option(help="Where the deputy is installed.")] = None,
) -> None:
    """Print the file for /etc/sudoers.d that lets the worker's account start the deputy as others, and nothing else."""
    from jobbergate_flows.slurm.deputy_door import INSTALLED
    from jobbergate_flows.slurm.sudoers import sudoers_text

    print(sudoers_text(account, group, deputy or INSTALLED), end="")


@commands.command(name="install-deputy")
def install(
    to: Annotated[Path | None, typer.Option(help="Where; its directory must be root's.", show_default=False)] = None,
) -> None:
    """Install the deputy, the program that acts as a user, where sudo may start it. Again after each upgrade."""
    from jobbergate_flows.slurm.deputy_door import INSTALLED
    from jobbergate_flows.slurm.sudoers import install_deputy

    target = to or Path(INSTALLED)
    print(f"{target}: {install_deputy(target)}")


def _digest(word: str | None) -> str | None:
    """A digest, also where a whole pin is given."""
    return None if word is None else word.rpartition("@")[2]


def _owner(file: Path) -> int:
    """Who the table must belong to: root, or whoever tries the command on a table of their own."""
    import os

    try:
        belongs = file.lstat().st_uid
    except OSError:
        belongs = os.geteuid()
    owner = 0 if belongs == 0 else os.geteuid()
    if owner != 0:
        say("Hint: the worker reads only a table that belongs to root")
    return owner
