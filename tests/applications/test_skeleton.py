"""A new application to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobbergate_flows.applications import Application, LoadingError
from jobbergate_flows.applications.skeleton import create_application


def test_a_new_application_works(tmp_path: Path) -> None:
    folder = create_application(tmp_path / "deep" / "greet", "Greetings")
    application = Application.from_path(folder)

    script = application.render({"name": "you", "times": 2})

    assert folder == tmp_path / "deep" / "greet"
    assert application.describe().complete
    assert application.description.startswith("# Greetings")
    assert "Hello, you" in script.text


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert Application.from_path(create_application(tmp_path)).description.startswith(f"# {tmp_path.name}")


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")

    with pytest.raises(LoadingError, match="not empty") as caught:
        create_application(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LoadingError, match="cannot be written"):
        create_application(tmp_path / "file" / "study")
