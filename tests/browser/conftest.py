"""The browser, and the site whose pages it opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, missing
from tests.end_to_end.conftest import a_worker_that_runs

__all__ = ["a_worker_that_runs", "browser", "pictures"]

_PICTURES = "JOBBERGATE_FLOWS_SCREENSHOTS"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A headless Chromium. It ends with its module: its last page would go on asking the Prefect server."""
    if lacking := missing():
        pytest.fail(f"no browser here: {', '.join(lacking)} missing (Debian: chromium, chromium-driver)")
    with Chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="session")
def pictures() -> Path | None:
    """The folder for the pictures of the documentation, where one was named."""
    # What the tests were started with: by now their own environment has lost everybody's settings.
    started_with = dict(
        entry.split("=", 1) for entry in Path("/proc/self/environ").read_text().split("\0") if "=" in entry
    )
    named = started_with.get(_PICTURES)
    return Path(named) if named else None
