"""The families whose published weights can be read and written, and which of them a network is."""

from model.config import ModelConfig
from model.pretrained import bert, gpt2, llama, t5
from model.pretrained.mapping import Family
from model.pretrained.safetensors_files import WeightsError

FAMILIES = {  # "model_type" of a config.json -> family
    "gpt2": gpt2.FAMILY,
    "bert": bert.BERT,
    **dict.fromkeys(("roberta", "xlm-roberta"), bert.ROBERTA),
    **dict.fromkeys(("t5", "mt5"), t5.FAMILY),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), llama.FAMILY),
}


def family_of(config: ModelConfig) -> Family:
    """The family whose networks are built like this one; `export` checks that it has exactly this one."""
    if config.architecture == "decoder" and config.positions in ("learned", "rotary"):
        return gpt2.FAMILY if config.positions == "learned" else llama.FAMILY
    if config.architecture == "encoder":
        return bert.ROBERTA if config.position_offset else bert.BERT
    if config.architecture == "encoder_decoder":
        return t5.FAMILY
    raise WeightsError(
        f"model.architecture {config.architecture!r} with positions {config.positions!r}: none of the published "
        f"families {', '.join(FAMILIES)} is built like this"
    )
