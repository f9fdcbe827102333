"""The worker's settings: environment variables `PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_*`, or Prefect profiles."""

from __future__ import annotations

from typing import ClassVar, Literal

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class WorkerSettings(PrefectBaseSettings):
    """How this worker reaches its cluster, and how often it looks."""

    model_config: ClassVar[SettingsConfigDict] = build_settings_config(("integrations", "jobbergate_flows"))

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
