"""The block that says how a cluster is reached."""

from __future__ import annotations

from typing import ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.connect import connect


class SlurmCluster(Block):
    """How the tasks of this package reach a cluster.

    Example:
        Load a stored cluster and submit to it:
        ```python
        from jobbergate_flows.blocks import SlurmCluster
        from jobbergate_flows.tasks import submit_job_script

        cluster = SlurmCluster.load("BLOCK_NAME")
        job = submit_job_script(script, cluster=cluster, directory="/scratch/me")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Slurm Cluster"
    _block_type_slug: ClassVar[str | None] = "slurm-cluster"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl("https://upload.wikimedia.org/wikipedia/commons/3/3a/Slurm_logo.svg")
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://slurm.schedmd.com/quickstart.html")
    _description: ClassVar[str | None] = "Reach a Slurm cluster through its commands, or run jobs locally."

    access: Literal["auto", "slurm", "local"] = Field(
        default="auto",
        title="Access",
        description="`slurm`: sbatch, squeue, sacct and scancel on this host. `local`: processes of this machine. "
        "`auto`: Slurm where it is, else local.",
    )
    cluster_name: str | None = Field(
        default=None,
        title="Cluster name",
        description="Slurm's name of the cluster, where several share a database; otherwise found by itself.",
    )
    slurm_conf: str | None = Field(
        default=None,
        title="slurm.conf",
        description="Path of slurm.conf where it is not the system's own.",
    )

    def connect(self) -> Cluster:
        """The cluster, acting as the own account."""
        return connect(self.access, name=self.cluster_name, slurm_conf=self.slurm_conf)
