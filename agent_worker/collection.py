"""What Prefect imports when it looks for worker types (entry-point group `prefect.collections`)."""

from agent_worker.worker import JobbergateSlurmWorker

__all__ = ["JobbergateSlurmWorker"]
