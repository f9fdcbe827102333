"""Slurm: options, states, commands, clusters, submission, tracking. Nothing in here knows of Prefect."""
