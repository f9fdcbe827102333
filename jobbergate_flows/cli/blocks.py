"""`blocks`: the Prefect block types of this package."""

from __future__ import annotations

from pathlib import Path

import typer

from jobbergate_flows.cli.server import server_errors
from jobbergate_flows.cli.terminal import progress

commands = typer.Typer(help="Prefect block types.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Prefect block types."""


@commands.command()
def register(
    files: list[Path] = typer.Argument(None, metavar="[FILE]...", help="Block documents (YAML) to save as well."),
) -> None:
    """Register the block types of clusters and applications with the Prefect server, and save block documents."""
    with progress("Registering"), server_errors():
        from jobbergate_flows.blocks import register as register_blocks
        from jobbergate_flows.blocks import save_documents

        names = register_blocks()
        for file in files or ():
            names += save_documents(file)
    for name in names:
        print(name)
