"""What the worker has to do with Jobbergate: the mirror of its runs, and the bridge that stands in for an agent."""
