"""Block documents in YAML: what a site fills in, and applies with `jobbergate-flows blocks register FILE...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobbergate_flows.blocks.application import StoredApplication
from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.blocks.jobbergate import JobbergateAPI
from jobbergate_flows.blocks.metrics import InfluxMetrics
from jobbergate_flows.errors import JobbergateFlowsError
from jobbergate_flows.reading import read_yaml

BLOCK_TYPES: tuple[type[Block], ...] = (StoredApplication, SlurmCluster, InfluxMetrics, JobbergateAPI)


class DocumentRefused(JobbergateFlowsError):
    """A block document cannot be read, or does not fit its block type."""


class BlockDocument(BaseModel):
    """One document: the block type's slug, the block's name, and its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_type: str
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    fields: dict[str, Any] = Field(default_factory=dict)


def read_documents(path: Path) -> list[tuple[str, Block]]:
    """The blocks of a YAML file, by their names; the file may hold several documents.

    Raises:
        DocumentRefused: with the file and what is wrong.
    """
    types = {kind.get_block_type_slug(): kind for kind in BLOCK_TYPES}
    blocks = []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DocumentRefused(
            f"the file cannot be read: {error.strerror}", where=str(path), hint="name a file of block documents"
        ) from error
    except UnicodeDecodeError as error:
        raise DocumentRefused("the file is no UTF-8 text", where=str(path), hint="save it as UTF-8") from error
    for content in read_yaml(text, where=str(path), refused=DocumentRefused, unique_keys=True):
        try:
            document = BlockDocument.model_validate(content)
            if document.block_type not in types:
                raise DocumentRefused(
                    f"there is no block type {document.block_type!r}",
                    where=str(path),
                    hint=f"the block types are {', '.join(types)}",
                )
            kind = types[document.block_type]
            # Prefect's blocks take any field.
            if unknown := sorted(document.fields.keys() - kind.model_fields.keys()):
                raise DocumentRefused(
                    f"{document.block_type} has no field {unknown[0]!r}",
                    where=str(path),
                    hint=f"the fields are {', '.join(kind.model_fields)}",
                )
            blocks.append((document.name, kind.model_validate(document.fields)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DocumentRefused(f"{place}: {first['msg']}", where=str(path), hint=f"mend {place}") from error
    return blocks


def save_documents(path: Path) -> list[str]:
    """Save the blocks of a file, replacing those of the same names, and return `<block type>/<name>` of each.

    Raises:
        DocumentRefused: Nothing was saved.
    """
    saved = []
    for name, block in read_documents(path):
        run_coro_as_sync(block.asave(name, overwrite=True))
        saved.append(f"{block.get_block_type_slug()}/{name}")
    return saved
