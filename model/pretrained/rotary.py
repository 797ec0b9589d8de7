"""Rotary positions in a config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before."""

from typing import Any

from model.config import ModelConfig
from model.pretrained.mapping import require_kind
from model.pretrained.safetensors_files import WeightsError

SCALED = {  # published name -> our field
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_factor",
    "high_freq_factor": "rope_high_factor",
    "original_max_position_embeddings": "rope_original_length",
}
KINDS = {"default": [], "linear": ["factor"], "llama3": list(SCALED)}  # kind -> the numbers that it takes


def rope_from(keys: dict[str, Any]) -> dict[str, Any]:
    """Fields of a ModelConfig; WeightsError for a kind, or a number of it, that has no equal."""
    given = dict(keys.get("rope_scaling") or keys.get("rope_parameters") or {})
    theta = given.pop("rope_theta", keys.get("rope_theta", 10_000.0))
    old_name = given.pop("type", "default")
    kind = str(given.pop("rope_type", old_name))
    numbers = set(KINDS.get(kind, ()))
    if kind not in KINDS or numbers - given.keys() or given.keys() - numbers - {"original_max_position_embeddings"}:
        known = ", ".join(f"{name} ({', '.join(needed) or 'no numbers'})" for name, needed in KINDS.items())
        raise WeightsError(f"config.json: rotary positions of type {kind!r} with {given}: Tessera has only {known}")
    require_kind("rope_theta", "rope_theta", theta)
    for name in numbers:
        require_kind(name, SCALED[name], given[name])
    scaled = {ours: given[name] for name, ours in SCALED.items() if name in numbers}
    return {"rope_theta": theta, "rope_scaling": "none" if kind == "default" else kind, **scaled}


def rope_to(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` of a config."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    scaled = {name: getattr(config, SCALED[name]) for name in KINDS[kind]}
    return {"rope_type": kind, "rope_theta": config.rope_theta, **scaled}
