"""The block that says where a cluster's metrics are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, model_validator

from jobbergate_flows.metrics.address import address

if TYPE_CHECKING:
    from jobbergate_flows.metrics.reading import MetricsReader


class InfluxMetrics(Block):
    """The InfluxDB to which Slurm's `acct_gather_profile/influxdb` writes the metrics of jobs.

    Example:
        Load a stored block and read a job's metrics:
        ```python
        from jobbergate_flows.blocks import InfluxMetrics
        from jobbergate_flows.job_metrics import job_metrics

        metrics = job_metrics(job, metrics=InfluxMetrics.load("BLOCK_NAME"))
        ```
    """

    # Its errors would show the secrets that it was given.
    model_config = ConfigDict(hide_input_in_errors=True)
    _block_type_name: ClassVar[str | None] = "Influx Metrics"
    _block_type_slug: ClassVar[str | None] = "influx-metrics"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://github.com/influxdata.png")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://slurm.schedmd.com/acct_gather.conf.html")
    _description: ClassVar[str | None] = "Read the metrics of Slurm jobs from InfluxDB."

    url: str = Field(
        title="URL",
        description="Where InfluxDB is, such as `https://influx.example.org:8086`. User and password have fields of "
        "their own, where the password is kept secret.",
        pattern="^https?://",
    )
    flavour: Literal["influxql", "flux"] = Field(
        default="influxql",
        title="Flavour",
        description="`influxql`: InfluxDB 1.x, and 2.x or 3 with its 1.x endpoint. `flux`: InfluxDB 2.x without it.",
    )
    database: str = Field(
        default="slurm",
        title="Database",
        description="Slurm's `ProfileInfluxDBDatabase`: the database, or with Flux the bucket.",
    )
    retention_policy: str | None = Field(
        default=None,
        title="Retention policy",
        description="Slurm's `ProfileInfluxDBRTPolicy`, where it is not the database's default; not with Flux.",
    )
    org: str | None = Field(default=None, title="Organisation", description="Its name or id; with Flux only.")
    username: str | None = Field(default=None, title="User name", description="Of somebody who may read the database.")
    password: SecretStr | None = Field(default=None, title="Password", description="The user's.")
    token: SecretStr | None = Field(default=None, title="Token", description="Instead of a user; needed with Flux.")
    verify_tls: bool = Field(
        default=True, title="Verify TLS", description="Whether the server's certificate must be valid."
    )
    ca_file: str | None = Field(
        default=None, title="CA file", description="Path of the CAs to trust, where they are not the system's."
    )
    timeout: float = Field(
        default=60, gt=0, title="Timeout", description="Seconds without an answer after which it counts as unreachable."
    )
    cluster: str | None = Field(
        default=None,
        title="Cluster",
        description="Slurm's name of the cluster, where several write to the database and tag their samples with it "
        "(`ProfileInfluxDBExtraTags=cluster`).",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_user_from_url(cls, values: Any) -> Any:
        """A URL is shown to everybody: what it says of a user goes where it belongs."""
        if not isinstance(values, dict) or not isinstance(values.get("url"), str):
            return values
        found = address(values["url"])
        if found.username is None:
            return values
        own = {} if values.get("username") or values.get("token") else {"username": found.username}
        if own and not values.get("password"):
            own["password"] = found.password or ""
        return values | own | {"url": found.url}

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.flavour == "flux" and not (self.org and self.token):
            raise ValueError("Flux needs an organisation and a token")
        if self.flavour == "flux" and self.retention_policy:
            raise ValueError("with Flux the retention policy is a part of the bucket's name: database/policy")
        if self.username and self.token:
            raise ValueError("give a user or a token, not both")
        return self

    def reader(self) -> MetricsReader:
        """The reader of this database.

        Raises:
            LibraryMissing: Flux is wanted, and `influxdb-client` is not installed.
        """
        verify = self.ca_file if self.ca_file and self.verify_tls else self.verify_tls
        token = self.token.get_secret_value() if self.token else None
        if self.flavour == "flux":
            from jobbergate_flows.metrics.flux import FluxReader

            return FluxReader(
                self.url,
                self.database,
                org=self.org or "",
                token=token or "",
                verify=verify,
                timeout=self.timeout,
                cluster=self.cluster,
            )
        from jobbergate_flows.metrics.influxql import InfluxQLReader

        return InfluxQLReader(
            self.url,
            self.database,
            retention_policy=self.retention_policy,
            username=self.username,
            password=self.password.get_secret_value() if self.password else None,
            token=token,
            verify=verify,
            timeout=self.timeout,
            cluster=self.cluster,
        )
