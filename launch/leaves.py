"""A nested config as one flat mapping."""

from collections.abc import Mapping
from typing import Any


def flat(config: Any) -> dict[str, Any]:
    """Dotted name -> value of every leaf of a ConfigDict (or mapping), in order of names."""
    found: dict[str, Any] = {}
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping) or hasattr(value, "items"):
            found.update({f"{key}.{name}": leaf for name, leaf in flat(value).items()})
        else:
            found[key] = value
    return found
