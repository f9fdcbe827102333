"""`cluster`: what is reachable from this host."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobbergate_flows.cli.exits import Exit, say
from jobbergate_flows.cli.terminal import print_json, print_table, progress

Access = Annotated[
    Literal["auto", "slurm", "local"],
    typer.Option(
        "--cluster",
        envvar="JOBBERGATE_FLOWS_CLUSTER",
        help="`slurm`: Slurm's commands on this host. `local`: processes of this machine. "
        "`auto`: Slurm where it is, else local.",
    ),
]

commands = typer.Typer(help="The cluster that this host reaches.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """The cluster that this host reaches."""


@commands.command()
def check(
    cluster: Access = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is reachable, in which version, what is missing and how to mend it.

    Exit code 4 when something is not well.
    """
    import asyncio
    from dataclasses import asdict

    from jobbergate_flows.slurm.cluster import Finding
    from jobbergate_flows.slurm.connect import connect
    from jobbergate_flows.slurm.errors import ClusterUnreachable

    try:
        reached = connect(cluster)
    except ClusterUnreachable as error:
        if not as_json:
            raise
        finding = Finding("connection", False, error.message, error.hint)
        print_json({"cluster": None, "ok": False, "findings": [asdict(finding)]})
        raise typer.Exit(Exit.UNREACHABLE) from error
    with progress("Asking the cluster"):
        findings = asyncio.run(reached.check())
    well = all(finding.ok for finding in findings)
    if as_json:
        print_json({"cluster": reached.name, "ok": well, "findings": [asdict(finding) for finding in findings]})
    else:
        print(f"Cluster {reached.name}, as {reached.user}")
        print_table(
            ["", "subject", "found"],
            [["ok" if finding.ok else "NOT OK", finding.subject, finding.detail] for finding in findings],
        )
        for finding in findings:
            if finding.hint:
                say(f"Hint: {finding.subject}: {finding.hint}")
    raise typer.Exit(Exit.OK if well else Exit.UNREACHABLE)
