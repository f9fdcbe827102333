"""The worker on the cluster: runs applications resident, other flows as Slurm jobs."""
