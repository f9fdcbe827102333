"""Block documents that a site fills in."""

from pathlib import Path

import pytest

from jobbergate_flows.blocks import SlurmCluster
from jobbergate_flows.blocks.documents import DocumentRefused, read_documents

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "blocks").glob("*.yaml")), ids=lambda path: path.name)
def test_the_documents_of_the_repository_can_be_applied(path: Path) -> None:
    assert read_documents(path)


def test_a_document_is_a_block_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "blocks.yaml").write_text(
        "block_type: slurm-cluster\nname: one\nfields: {access: local}\n---\nblock_type: slurm-cluster\nname: two\n"
    )
    blocks = dict(read_documents(tmp_path / "blocks.yaml"))
    assert isinstance(blocks["one"], SlurmCluster)
    assert [getattr(blocks[name], "access", None) for name in ("one", "two")] == ["local", "auto"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("block_type: [", r"blocks.yaml:1: bad YAML.*mend the YAML"),
        ("name: 1\nfields: {since: 2024-13-45}\n", r"blocks.yaml:2: bad YAML: month must be in 1..12.*quote it"),
        ("name: \x01\n", r"blocks.yaml:1: bad YAML: the character"),
        ("name: one\nname: two\n", "blocks.yaml:2: bad YAML: 'name' is there twice"),
        ("block_type: cluster\nname: one\n", "slurm-application, slurm-cluster, influx-metrics"),
        ("block_type: slurm-cluster\n", "mend name"),
        ("block_type: slurm-cluster\nname: one\nfields: {access: ssh}\n", "mend access"),
        ("block_type: slurm-cluster\nname: one\nkind: x\n", "mend kind"),
        ("block_type: slurm-cluster\nname: one\nfields: {acces: slurm}\n", "'acces'.*the fields are access"),
    ],
)
def test_a_wrong_document_is_refused_with_its_file_and_the_mend(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "blocks.yaml"
    path.write_text(text)
    with pytest.raises(DocumentRefused, match=words) as refused:
        read_documents(path)
    assert str(path) in str(refused.value)
