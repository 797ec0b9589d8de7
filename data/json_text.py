"""JSON that anyone may have written."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """`json.loads`. Raises ValueError for all that is no JSON, and for lists in lists deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deep") from error
