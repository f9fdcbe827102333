"""What a run shows, and how much: environment variables `PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_*`, or Prefect profiles.

The worker has these and its own; flows that run elsewhere have these.
"""

from __future__ import annotations

from typing import ClassVar

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from jobbergate_flows.slurm.output import OutputLimits


class ReportSettings(PrefectBaseSettings):
    """How much of a job is shown in its run."""

    model_config: ClassVar[SettingsConfigDict] = build_settings_config(("integrations", "jobbergate_flows"))

    output_bytes: int = Field(
        default=2 << 20,
        ge=0,
        description="Bytes of a job's output that go into its run's logs; the rest is in its file.",
    )
    output_bytes_a_round: int = Field(
        default=64 << 10, ge=8 << 10, description="Bytes of it in one round, which is each three seconds."
    )
    live: bool = Field(default=True, description="Whether a run shows its job's progress and a live page.")
    live_seconds: float = Field(
        default=15.0, gt=0, description="Seconds between two updates of the live page for output and usage alone."
    )
    usage_seconds: float = Field(
        default=60.0, gt=0, description="Seconds between two questions for a running job's memory and CPU."
    )
    metrics: str | None = Field(
        default=None, description="The name of an InfluxMetrics block: where Slurm writes its jobs' profiles."
    )

    @property
    def output_limits(self) -> OutputLimits:
        """The limits on output."""
        return OutputLimits(round=self.output_bytes_a_round, total=self.output_bytes)
