"""The worker's settings: environment variables `PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_*`, or Prefect profiles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobbergate_flows.settings import ReportSettings


class WorkerSettings(ReportSettings):
    """How this worker reaches its cluster, how often it looks, and what its runs show."""

    cluster: Literal["auto", "slurm", "local"] = Field(
        default="auto", description="`slurm`, `local` (processes of this machine), or `auto`: Slurm where it is."
    )
    cluster_name: str | None = Field(default=None, description="Slurm's cluster name; otherwise asked of Slurm.")
    slurm_conf: str | None = Field(default=None, description="Path of slurm.conf where it is not the system's.")
    ledger: str | None = Field(
        default=None,
        description="The ledger's file, or a database URL; otherwise a file in the account's state directory.",
    )
    cancel_poll_seconds: float = Field(
        default=3.0, gt=0, le=20, description="Seconds between two looks for runs to cancel."
    )
    recovery_poll_seconds: float = Field(
        default=60.0, gt=0, description="Seconds between two looks for runs that a worker left behind."
    )
    health_seconds: float = Field(
        default=300.0,
        ge=5,
        description="Seconds between two words of the worker on how well it is; trouble is told sooner.",
    )
    bridge: Literal["off", "service", "deployment"] = Field(
        default="off",
        description="Whether this worker stands in for jobbergate-agent, whose settings JOBBERGATE_AGENT_* it takes. "
        "`service`: it looks for job submissions itself. `deployment`: a recurring deployment does, and the "
        "worker only runs what that finds.",
    )
    bridge_env: str | None = Field(
        default=None,
        description="Path of the agent's .env; otherwise that of the agent's snap, or .env in the working directory.",
    )
    update_index: str | None = Field(
        default=None,
        description="The URL of this package's JSON page on a package index, where the worker looks once a day for a "
        "newer version, of which it only tells. Empty: it does not look.",
    )
    jobbergate_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds between two looks for jobs that somebody has cancelled in Jobbergate, and between two "
        "sendings of metrics there.",
    )
    acting: Literal["none", "sudo", "root"] = Field(
        default="none",
        description="`none`: as the worker's own account. `sudo`: as others, through the installed deputy. "
        "`root`: as others, by a worker that is root.",
    )
    policy: Literal["single-user", "owner"] = Field(
        default="single-user",
        description="Whose runs are: one account's, or whose the bindings table and the mapper say.",
    )
    account: str | None = Field(
        default=None, description="The account of `single-user`; otherwise the worker's own. None with `owner`."
    )
    consent: bool = Field(default=False, description="Whether users must allow runs in a file of their own.")
    consent_seconds: float = Field(
        default=86400.0, gt=0, description="Seconds for which a run waits for its user's consent; then it has failed."
    )
    decision_poll_seconds: float = Field(
        default=15.0, gt=0, description="Seconds between two looks while a run waits for consent or for a directory."
    )
    min_uid: int = Field(default=1000, ge=1, description="No account with a lower uid is acted for.")
    groups: str = Field(
        default="", description="Names of groups, with commas: only their members are acted for. Empty: no such limit."
    )
    umask: Literal["077", "027", "022"] = Field(default="077", description="Of what is written for users.")
    deputy: str | None = Field(
        default=None, description="Path of the installed deputy; with `root` it may be the package's own."
    )
    deputy_python: str | None = Field(
        default=None,
        description="A Python that users can run, with Jinja: it renders, and with `root` runs the deputy.",
    )
    bindings: str = Field(
        default="/etc/jobbergate-flows/bindings.yaml", description="The table of who owns what, for the policy `owner`."
    )
    mapper: str | None = Field(
        default=None,
        description="Who knows the account of a run's creator, for `owner`: `ldap`, or the name of a plugin.",
    )
    mapper_word: Literal["id", "display_value"] = Field(
        default="id", description="What of a run's creator the mapper gets. People can change the display value."
    )
    ldap_url: str | None = Field(default=None, description="ldaps://HOST, for the mapper `ldap`.")
    ldap_base: str = Field(default="", description="Where the search begins.")
    ldap_filter: str = Field(default="(mail={identity})", description="The search's filter.")
    ldap_attribute: str = Field(default="uid", description="The attribute that holds the account's name.")
    ldap_bind_dn: str | None = Field(default=None, description="Whom to bind as; otherwise anonymously.")
    ldap_password_file: str | None = Field(default=None, description="The file with that one's password.")
    ldap_start_tls: bool = Field(default=False, description="Whether an ldap:// connection is encrypted with StartTLS.")
    ldap_ca_file: str | None = Field(
        default=None, description="Who may vouch for the directory; otherwise the system's."
    )
    audit: str | None = Field(
        default=None,
        description="The socket of syslog or of the journal for the audit log; otherwise /dev/log, where the worker "
        "acts for others or a policy decides. Nothing runs without its line.",
    )
