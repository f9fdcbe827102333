"""Values as a deputy hands them on: JSON, which has not all of YAML's types."""

from __future__ import annotations

import base64
import datetime
from typing import Any


def plain_from(value: Any) -> Any:
    """The value that `deputy_door.plain_to` has written: a mapping is `{"dict": [[key, value], ...]}`."""
    if isinstance(value, list):
        return [plain_from(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {plain_from(key): plain_from(entry) for key, entry in inner}
    if kind in ("set", "tuple"):
        return (set if kind == "set" else tuple)(plain_from(entry) for entry in inner)
    if kind == "bytes":
        return base64.b64decode(inner, validate=True)
    return {"date": datetime.date, "datetime": datetime.datetime}[kind].fromisoformat(inner)
