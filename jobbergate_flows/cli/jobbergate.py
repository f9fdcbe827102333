"""`jobbergate`: the Jobbergate API of a site that has one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jobbergate_flows.cli import jobbergate_entries
from jobbergate_flows.cli.exits import UsageError, say
from jobbergate_flows.cli.jobbergate_entries import AsJson
from jobbergate_flows.cli.terminal import print_fields, print_json

commands = typer.Typer(
    help="The Jobbergate API: log in, and look at what it holds. Creating and changing is for Prefect, and for "
    "Jobbergate's own CLI.",
    epilog="Settings, logins and their files are those of Jobbergate's own CLI: BASE_API_URL, OIDC_DOMAIN, "
    "OIDC_CLIENT_ID, OIDC_USE_HTTPS, JOBBERGATE_CACHE_DIR, also from /etc/default/jobbergate3-cli or a .env here.",
    no_args_is_help=True,
)
commands.add_typer(jobbergate_entries.applications, name="applications")
commands.add_typer(jobbergate_entries.job_scripts, name="job-scripts")
commands.add_typer(jobbergate_entries.job_submissions, name="job-submissions")
commands.add_typer(jobbergate_entries.clusters, name="clusters")


@dataclass(frozen=True)
class Given:
    """The settings that were given as options."""

    api_url: str | None
    oidc_domain: str | None
    oidc_client_id: str | None
    cache_directory: Path | None


@commands.callback()
def _group(
    context: typer.Context,
    api_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The API's, without `/jobbergate`.", show_default="BASE_API_URL"),
    ] = None,
    oidc_domain: Annotated[
        str | None,
        typer.Option(
            metavar="REALM", help="Where one logs in: auth.example.org/realms/example.", show_default="OIDC_DOMAIN"
        ),
    ] = None,
    oidc_client_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The OIDC client to log in with.", show_default="OIDC_CLIENT_ID"),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder whose folder `token` has the tokens.", show_default="JOBBERGATE_CACHE_DIR"
        ),
    ] = None,
) -> None:
    context.obj = Given(api_url, oidc_domain, oidc_client_id, cache_dir)


@commands.command()
def login(
    context: typer.Context,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="How long to wait for you, at most.")] = 900,
    as_json: AsJson = False,
) -> None:
    """Log in: shows an address, waits until you have logged in there, and keeps the tokens."""
    from jobbergate_flows.cli.jobbergate_access import log_in, settings_of

    who = log_in(settings_of(context.obj), wait)
    if as_json:
        print_json(who.as_json())
    else:
        print(f"Logged in as {who.name}.")


@commands.command()
def logout(context: typer.Context) -> None:
    """Forget the login, also for Jobbergate's own programs. The OIDC provider is not told."""
    from jobbergate_flows.cli.jobbergate_access import handler, settings_of

    settings = settings_of(context.obj)
    handler(settings).logout()
    say(f"Logged out: there are no tokens in {settings.token_directory} any more.")


@commands.command()
def show_token(
    context: typer.Context,
    plain: Annotated[bool, typer.Option("--plain", help="Print the token itself.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="The refresh token, not the access token.")] = False,
    prefix: Annotated[bool, typer.Option("--prefix", help="Print the token with `Bearer` before it.")] = False,
    header: Annotated[bool, typer.Option("--header", help="Print it as a request's header, in JSON.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Print what is in it, as JSON.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whose the token is and until when it is valid. The token itself is printed only when it is asked for.

    A token that is about to expire is renewed before.
    """
    from jobbergate_flows.cli.jobbergate_access import contents, facts, settings_of, token_of

    if as_json and (plain or prefix or header or decode):
        raise UsageError("--json is for what is said of a token", hint="leave it out: --header and --decode are JSON")
    token = token_of(settings_of(context.obj), refresh=refresh)
    if decode:
        print_json(contents(token))
    elif header:
        print_json({"Authorization": token.bearer_token})
    elif prefix:
        print(token.bearer_token)
    elif plain:
        print(token.content)
    elif as_json:
        print_json(facts(token))
    else:
        print_fields(
            {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts(token).items()}
        )
