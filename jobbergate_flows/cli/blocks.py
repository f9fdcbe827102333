"""`blocks`: the Prefect block types of this package."""

from __future__ import annotations

import typer

from jobbergate_flows.cli.server import server_errors
from jobbergate_flows.cli.terminal import progress

commands = typer.Typer(help="Prefect block types.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Prefect block types."""


@commands.command()
def register() -> None:
    """Register the block types of clusters and applications with the Prefect server."""
    with progress("Registering"), server_errors():
        from jobbergate_flows.blocks import register as register_blocks

        names = register_blocks()
    for name in names:
        print(name)
