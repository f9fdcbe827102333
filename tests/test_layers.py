"""Imports point downwards only, and the lower half never imports Prefect (docs/architecture.md, Layers)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobbergate_flows", "agent_worker")
# From the bottom up; the longest name that fits a module counts.
LAYERS = {
    "jobbergate_flows": 1,
    "jobbergate_flows.errors": 0,
    "jobbergate_flows.reading": 0,
    "jobbergate_flows.applications": 0,
    "jobbergate_flows.slurm": 0,
    "jobbergate_flows.markdown": 0,
    "jobbergate_flows.job_pages": 0,
    "jobbergate_flows.live_page": 0,
    "jobbergate_flows.results_page": 0,
    "jobbergate_flows.metrics": 0,
    "jobbergate_flows.jobbergate": 0,
    "agent_worker": 2,
    # What decides whose run it is must be readable, and testable, without Prefect.
    "agent_worker.identity": 0,
    "jobbergate_flows.cli": 3,
}
NAMES = ("no Prefect", "Prefect", "agent_worker", "cli")
# It runs only within alembic, which hands it a context.
NOT_IMPORTABLE = "jobbergate_flows.slurm.migrations"

IMPORT_ALL = """
import importlib, json, sys
guilty = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    found = sorted(module for module in sys.modules if module.partition(".")[0] == "prefect")
    if found:
        guilty[name] = found[:3]
        break
print(json.dumps(guilty))
"""

CALL_HELP = """
import json, sys
from jobbergate_flows.cli import main
sys.argv = ["jobbergate-flows", *json.loads(sys.argv[1]), "--help"]
try:
    code = main()
except SystemExit as end:
    code = end.code
assert not code, code
slow = {"prefect", "numpy", "matplotlib"}
print([module for module in sys.modules if module.partition(".")[0] in slow], file=sys.stderr)
"""


def test_the_lower_half_imports_no_prefect() -> None:
    lower = ["jobbergate_flows", *(name for name in modules() if layer(name) == 0 and NOT_IMPORTABLE not in name)]
    assert len(lower) > 20
    done = python(IMPORT_ALL, json.dumps(lower))
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize(
    "command",
    [[], ["app"], ["app", "run"], ["job"], ["cluster"], ["blocks"], ["consent"], ["worker"], ["demo"]],
    ids=" ".join,
)
def test_help_imports_nothing_slow(command: list[str]) -> None:
    done = python(CALL_HELP, json.dumps(command))
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path}:{line}: {name} ({NAMES[layer(name)]}) imports {imported} ({NAMES[layer(imported)]})"
        for name, path in modules().items()
        for imported, line in imports(path, name)
        if imported.partition(".")[0] in PACKAGES and layer(imported) > layer(name)
    ]
    assert wrong == []


def test_the_lower_half_names_prefect_in_no_import() -> None:
    wrong = [
        f"{path}:{line}: {imported}"
        for name, path in modules().items()
        if layer(name) == 0
        for imported, line in imports(path, name)
        if imported.partition(".")[0] == "prefect"
    ]
    assert wrong == []


def modules() -> dict[str, Path]:
    """Every module of the distribution, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.relative_to(ROOT)
    # The package itself holds no code of any layer: everybody may import it.
    del found["jobbergate_flows"]
    return found


def layer(name: str) -> int:
    fitting = [prefix for prefix in LAYERS if name == prefix or name.startswith(f"{prefix}.")]
    return LAYERS[max(fitting, key=len)]


def imports(path: Path, name: str) -> Iterator[tuple[str, int]]:
    """What a module imports anywhere in it, also within its functions, with the line."""
    tree = ast.parse((ROOT / path).read_text(), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (above, node.module or "") if part)
            if module in PACKAGES:
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def python(program: str, argument: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done
