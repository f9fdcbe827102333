"""Where applications come from: archives and git."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from jobbergate_flows.applications import Application, DigestMismatch, LoadingError, SourceError, load_application
from jobbergate_flows.applications.sources import GitReference, pack
from tests.applications.conftest import Make, Write


def test_an_archive_holds_the_whole_application(make: Make) -> None:
    application = make("Text('who', default='grün')", script="echo {{ who }}", files={"README.md": "Says."})
    archive = application.archive()

    other = Application.from_archive(archive, name=application.name, source="there", digest=application.digest)

    assert archive == application.archive() == other.archive()
    # gzip would note the time here.
    assert archive[4:8] == bytes(4)
    assert (other, other.source, other.description) == (application, "there", "Says.")
    assert other.render() == application.render()


def test_an_archive_of_another_application_is_refused(make: Make) -> None:
    application = make()

    with pytest.raises(DigestMismatch, match="not sha256:0") as caught:
        Application.from_archive(application.archive(), name="x", digest=f"sha256:{'0' * 64}")
    assert application.digest in caught.value.message
    assert caught.value.hint


def archive(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
        file.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


# gzip notes the time, so that the bytes are no names of tests: two processes would not collect the same.
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no archive", id="empty"),
        pytest.param(b"nonsense", "no archive", id="nonsense"),
        pytest.param(gzip.compress(b"nonsense" * 1000), "no archive", id="compressed nonsense"),
        pytest.param(archive("a")[:-10], "no archive", id="cut off"),
        pytest.param(archive("../a"), "holds '../a'", id="outside"),
        pytest.param(archive("/etc/a"), "holds '/etc/a'", id="absolute"),
        pytest.param(archive("a/../../b"), "no file of an application", id="outside by a detour"),
        pytest.param(archive("link", kind=tarfile.SYMTYPE), "holds 'link'", id="symbolic link"),
        pytest.param(archive("link", kind=tarfile.LNKTYPE), "holds 'link'", id="hard link"),
        pytest.param(archive("device", kind=tarfile.CHRTYPE), "holds 'device'", id="device"),
        pytest.param(archive("a\nb"), "no file of an application", id="newline"),
        pytest.param(archive("big", bytes(6 << 20)), "larger than 5 MiB", id="large file"),
        pytest.param(gzip.compress(bytes(100 << 20)), "larger than 5 MiB", id="bomb"),
        pytest.param(
            pack({f"{number}": b"" for number in range(1001)}), "larger than 5 MiB or 1000 files", id="many files"
        ),
    ],
)
def test_an_archive_that_is_none_or_too_large_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        Application.from_archive(data, name="x", source="block")
    assert caught.value.where == "block"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("git+https://host/a/b.git", ("https://host/a/b.git", None, ".")),
        ("git+https://host/a/b.git@v1.0", ("https://host/a/b.git", "v1.0", ".")),
        ("git+https://host/a/b@feature/x#apps/one", ("https://host/a/b", "feature/x", "apps/one")),
        ("git+https://me@host/a/b", ("https://me@host/a/b", None, ".")),
        ("git+https://me@host:8443/a/b@main", ("https://me@host:8443/a/b", "main", ".")),
        ("git+ssh://git@host:22/a/b.git@main#x/", ("ssh://git@host:22/a/b.git", "main", "x")),
        ("git+git@host:a/b.git", ("git@host:a/b.git", None, ".")),
        ("git+git@host:b.git@v1", ("git@host:b.git", "v1", ".")),
        ("git+git@host:/srv/b.git@v1#x", ("git@host:/srv/b.git", "v1", "x")),
        ("git+file:///srv/b@0123abc", ("file:///srv/b", "0123abc", ".")),
        ("git+https://host/a@b/c", ("https://host/a", "b/c", ".")),
    ],
)
def test_a_git_reference_is_read(text: str, reference: tuple[str, str | None, str]) -> None:
    parsed = GitReference.parse(text)

    assert (parsed.url, parsed.ref, parsed.subdirectory) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("git+", "no reference"),
        ("git+--upload-pack=touch /tmp/x", "no reference"),
        ("git+ext::sh -c touch% /tmp/x", "no reference"),
        ("git+-oProxyCommand=x:a/b", "no reference"),
        ("git+/srv/b", "no reference"),
        ("git+ftp://host/a", "no reference"),
        ("git+https://host", "no reference"),
        ("git+https://host/a@", "'' is no branch"),
        ("git+https://host/a@--upload-pack=x", "is no branch"),
        ("git+https://host/a@-x", "'-x' is no branch"),
        ("git+https://host/a@a b", "is no branch"),
        ("git+https://host/a#../b", "lies outside"),
        ("git+https://host/a#/etc", "lies outside"),
        ("git+https://host/a#x/../../b", "lies outside"),
        ("git+https://me:secret@host/a@main", "holds a password"),
        ("git+ssh://-oProxyCommand=touch/a", "strange hostname"),
    ],
)
def test_what_is_no_git_reference_is_refused(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        load_application(text)
    assert "secret" not in str(caught.value)


@pytest.fixture
def repository(write: Write, tmp_path: Path) -> Path:
    """A repository with an application in its folder `study`; its tag `v1` says one, its branch `main` two."""
    write("Text('who', default='one')", script="echo {{ who }}")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "study")
    git(tmp_path, "commit", "--quiet", "--message=one")
    git(tmp_path, "tag", "--annotate", "--message=v1", "v1")
    write("Text('who', default='two')", script="echo {{ who }}")
    git(tmp_path, "commit", "--quiet", "--all", "--message=two")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("ref", "revision", "says"), [("", "main", "two"), ("@main", "main", "two"), ("@v1", "v1^{commit}", "one")]
)
def test_an_application_is_loaded_from_git_and_names_its_commit(
    repository: Path, ref: str, revision: str, says: str
) -> None:
    application = load_application(f"git+file://{repository}{ref}#study")

    commit = git(repository, "rev-parse", revision)
    assert application.source == f"git+file://{repository}@{commit}#study"
    assert application.name == "study"
    assert application.render().text == f"#!/bin/bash\necho {says}\n"


def test_an_application_is_loaded_again_from_its_source(repository: Path) -> None:
    first = load_application(f"git+file://{repository}@v1#study")

    again = load_application(first.source)

    assert (again, again.source) == (first, first.source)


def test_an_application_may_be_the_whole_repository(repository: Path) -> None:
    whole = repository / "study"
    git(whole, "init", "--quiet")
    git(whole, "add", ".")
    git(whole, "commit", "--quiet", "--message=all")

    application = load_application(f"git+file://{whole}")

    assert (application.name, application.digest) == ("study", Application.from_path(whole).digest)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}@nowhere#study", "couldn't find remote ref nowhere"),
        ("{}-gone#study", "git fetch: "),
        ("{}#elsewhere", "no folder 'elsewhere' at "),
        ("{}#study/jobbergate.py", "no folder 'study/jobbergate.py' at "),
    ],
)
def test_what_git_cannot_fetch_is_told_in_its_words(repository: Path, reference: str, message: str) -> None:
    text = f"git+file://{reference.format(repository)}"

    with pytest.raises(SourceError, match=message) as caught:
        load_application(text)
    assert caught.value.where == text
    assert caught.value.hint


def test_a_folder_of_git_that_is_no_application_is_named_by_its_reference(repository: Path) -> None:
    with pytest.raises(LoadingError, match=r"no jobbergate\.yaml") as caught:
        load_application(f"git+file://{repository}#study/templates")
    assert str(caught.value.where).endswith("#study/templates")


def test_a_link_that_leads_out_of_the_repository_is_refused(repository: Path) -> None:
    (repository / "out").symlink_to("/etc")
    git(repository, "add", "out")
    git(repository, "commit", "--quiet", "--message=link")

    with pytest.raises(SourceError, match="no folder 'out'"):
        load_application(f"git+file://{repository}#out")


def test_git_is_missing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(SourceError, match="git cannot be run") as caught:
        load_application(f"git+file://{repository}#study")
    assert caught.value.hint == "install git"


def test_git_is_not_led_astray_by_who_runs_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As within a hook.
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_WORK_TREE", "/nowhere")

    assert load_application(f"git+file://{repository}#study").name == "study"
