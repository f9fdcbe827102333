"""Slurm applications as Prefect flows.

Importing this package imports neither Prefect nor anything else that is slow: the command line answers
`--help` quickly, and `applications` and `slurm` are usable without Prefect.
"""

__version__ = "0.1.0"
