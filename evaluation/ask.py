"""The object for a network of any family."""

from typing import Any

from jax.sharding import Mesh

from data.tokenizers.tokenizer import Tokenizer
from evaluation.encoder import Encoder
from evaluation.language_model import LanguageModel
from evaluation.sequence_to_sequence import SequenceToSequence
from model.config import ModelConfig
from model.sharding import ShardingRules

AnyModel = LanguageModel | Encoder | SequenceToSequence


def ask(
    config: ModelConfig, params: Any, tokenizer: Tokenizer, mesh: Mesh, rules: ShardingRules | None = None
) -> AnyModel:
    """An `Encoder`, a `SequenceToSequence`, or for all that predict the next token a `LanguageModel`."""
    kinds = {"encoder": Encoder, "encoder_decoder": SequenceToSequence}
    return kinds.get(config.architecture, LanguageModel)(config, params, tokenizer, mesh, rules)
