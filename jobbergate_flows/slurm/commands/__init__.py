"""Slurm's commands: one class each, with its arguments and a pure parser of what it answers."""

from jobbergate_flows.slurm.commands.environment import clean_environment
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.commands.sacct import Sacct, SacctDetails, SacctFind
from jobbergate_flows.slurm.commands.sacct_allocations import SacctAllocations
from jobbergate_flows.slurm.commands.sbatch import Sbatch
from jobbergate_flows.slurm.commands.scancel import Scancel
from jobbergate_flows.slurm.commands.scontrol import ShowConfig
from jobbergate_flows.slurm.commands.squeue import Squeue, SqueueFind

__all__ = [
    "CommandResult",
    "Sacct",
    "SacctAllocations",
    "SacctDetails",
    "SacctFind",
    "Sbatch",
    "Scancel",
    "ShowConfig",
    "Squeue",
    "SqueueFind",
    "clean_environment",
]
