"""scontrol: what the controller is, and how it is set up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobbergate_flows.slurm.commands.result import CommandResult, require_answer


@dataclass(frozen=True, slots=True)
class ShowConfig:
    """The controller's configuration."""

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        return ("scontrol", "show", "config")

    def parse(self, result: CommandResult) -> dict[str, str]:
        """Key -> value, as printed.

        Raises:
            ClusterUnreachable
        """
        output = require_answer("scontrol", result)
        return {m[1]: m[2].strip() for m in re.finditer(r"^(\w+)\s*=[ \t]*(.*)$", output, re.MULTILINE)}
