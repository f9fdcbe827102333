"""`job`: the jobs that were submitted from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobbergate_flows.cli.cluster import Access
from jobbergate_flows.cli.exits import say
from jobbergate_flows.cli.terminal import print_fields, print_json, print_table, progress, shortened

Word = Annotated[str, typer.Argument(metavar="ID|KEY", help="The job's id or its key.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

commands = typer.Typer(help="Jobs that were submitted from here.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Jobs that were submitted from here."""


@commands.command(name="list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Only those of this cluster.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs of this account's ledger, with their states now."""
    from jobbergate_flows.cli.submissions import look
    from jobbergate_flows.slurm.ledger import Ledger

    ledger = Ledger.open()
    with progress("Asking the cluster"):
        shown = look(ledger, ledger.recent(cluster=cluster, limit=limit))
    if as_json:
        print_json([entry.as_json() for entry in shown])
        return
    print_table(
        ["id", "key", "name", "cluster", "state", "submitted", "message"],
        [
            [
                entry.row.job_id,
                entry.row.key,
                shortened(entry.row.job_name),
                entry.row.cluster,
                entry.state,
                f"{(entry.row.submitted_at or entry.row.intent_at).astimezone():%Y-%m-%d %H:%M}",
                entry.message,
            ]
            for entry in shown
        ],
    )


@commands.command()
def show(job: Word, as_json: AsJson = False) -> None:
    """Show all that is known of a job."""
    from jobbergate_flows.cli.submissions import account, find, look
    from jobbergate_flows.slurm.ledger import Ledger

    ledger = Ledger.open()
    row = find(ledger, job)
    with progress("Asking the cluster"):
        [shown] = look(ledger, [row])
        accounting = account(row) if shown.is_final else {}
    content = shown.as_json() | {"accounting": accounting}
    if as_json:
        print_json(content)
        return
    print_fields(shown.as_json() | accounting)


@commands.command()
def efficiency(
    job: Annotated[
        str,
        typer.Argument(
            metavar="ID|KEY", help="The job's id or its key, or an array task's id (123_4).", show_default=False
        ),
    ],
    cluster: Access = "auto",
    as_json: AsJson = False,
) -> None:
    """Show how much a job used of what it asked for, and what to ask for the next time.

    Also of jobs that were not submitted from here: --cluster then says where they are.
    """
    from jobbergate_flows.cli.efficiency import print_report, read_records
    from jobbergate_flows.metrics.efficiency import efficiency as assess
    from jobbergate_flows.metrics.report import efficiency_json
    from jobbergate_flows.slurm.ledger import Ledger

    with progress("Asking accounting"):
        report = assess(read_records(Ledger.open(), job, cluster))
    if as_json:
        print_json(efficiency_json(report))
    else:
        print_report(report)


@commands.command()
def metrics(
    job: Annotated[
        str,
        typer.Argument(
            metavar="ID|KEY", help="The job's id or its key, or an array task's id (123_4).", show_default=False
        ),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="The file to write.", show_default="standard output")] = None,
    block: Annotated[
        str | None,
        typer.Option("--block", help="The name of the InfluxMetrics block.", show_default="the setting METRICS"),
    ] = None,
    cluster: Access = "auto",
) -> None:
    """Print the samples of memory, CPU, GPU and disk that Slurm took of a job, as CSV.

    Also of jobs that were not submitted from here: --cluster then says where they are.
    """
    from jobbergate_flows.cli.metrics import read_metrics, write_csv
    from jobbergate_flows.slurm.ledger import Ledger

    with progress("Reading metrics"):
        found = read_metrics(Ledger.open(), job, cluster, block)
    write_csv(found, to)
    if not len(found):
        say("There is no sample of the job: it was too short for one, or none came yet.")


@commands.command()
def logs(
    job: Word,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="The standard error, where it has its own file.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
) -> None:
    """Print the end of a job's output; an array's lines with the task's number in front."""
    import asyncio

    from jobbergate_flows.cli.following import print_output
    from jobbergate_flows.cli.submissions import cluster_of, find_job
    from jobbergate_flows.slurm.ledger import Ledger, SubmissionStatus

    row, found = find_job(Ledger.open(), job)
    cluster = cluster_of(found.cluster)
    stream: Literal["stdout", "stderr"] = (
        "stderr" if stderr and found.standard_error != found.standard_output else "stdout"
    )
    lives = row.status is SubmissionStatus.SUBMITTED
    asyncio.run(print_output(cluster, found, stream, lines=lines, follow=follow and lives))


@commands.command()
def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="ID|KEY...", help="Jobs' ids or keys.", show_default=False)],
) -> None:
    """Cancel jobs. One that has ended is no error."""
    from jobbergate_flows.cli.submissions import cancel_submissions, find
    from jobbergate_flows.slurm.ledger import Ledger

    ledger = Ledger.open()
    for line in cancel_submissions(ledger, [find(ledger, word) for word in jobs]):
        say(line)


@commands.command()
def fetch(
    job: Annotated[
        str, typer.Argument(metavar="ID|KEY|RUN", help="The job's id or key, or its flow run's id.", show_default=False)
    ],
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...",
            help="Which files, as in a .gitignore; otherwise the application's results, or all that the job has left.",
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="The folder to bring them into.")] = ".",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of another content.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a job's result files, and print their paths."""
    from jobbergate_flows.cli.submissions import fetch_files

    with progress("Bringing files"):
        paths = fetch_files(job, patterns or [], to, overwrite=overwrite)
    if as_json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        print(path)
    if not paths:
        say("The job has no such files.")
