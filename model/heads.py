"""What stands on a stack: x_BTD becomes scores of tokens, of classes, or nothing."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import Dropout, Embedding, Initializer, Linear, capped
from model.mlp import Activation
from model.parameters import declare
from model.sharding import ShardingRules
from model.transformer import Output


class LanguageModelHead(nn.Module):
    """Scores of the next token, by the embedding table (Press & Wolf 2017) or a matrix of its own."""

    output: Callable[..., nn.Module] | None  # None: the embedding table
    scale: float  # of x
    softcap: float  # 0: off
    rules: ShardingRules

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embedding: Embedding, train: bool) -> Output:
        x_BTD = x_BTD * self.scale if self.scale != 1.0 else x_BTD
        logits = embedding.logits(x_BTD) if self.output is None else self.output(name="output")(x_BTD)
        logits = capped(logits.astype(jnp.float32), self.softcap)
        return Output(logits=self.rules.constrain(logits, "batch", "length", "vocab"))


class MaskedLanguageModelHead(nn.Module):
    """Scores of the token that stood at each place (Devlin et al. 2019), by a transform and the embedding table.

    With `next_sentence`, also whether the second text of a pair follows the first.
    """

    dense: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Activation
    next_sentence: Callable[..., nn.Module] | None
    vocab_size: int
    rules: ShardingRules
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embedding: Embedding, train: bool) -> Output:
        h_BTD = self.activation(self.dense(name="transform")(x_BTD))
        zeros = declare(nn.initializers.zeros_init(), "vocab")
        bias_V = self.param("output_bias", zeros, (self.vocab_size,), self.param_dtype)
        logits = embedding.logits(self.norm(name="transform_norm")(h_BTD)) + bias_V.astype(jnp.float32)
        logits = self.rules.constrain(logits, "batch", "length", "vocab")
        if self.next_sentence is None:
            return Output(logits=logits)
        pooled_BD = _pool(self.dense, x_BTD)
        next_B2 = self.next_sentence(name="next_sentence")(pooled_BD).astype(jnp.float32)
        return Output(logits=logits, pooled_BD=pooled_BD, next_sentence_B2=next_B2)


class PoolerHead(nn.Module):
    """The first token through a tanh layer, (B, D), and scores of the text's class (B, labels) where there are any."""

    dense: Callable[..., nn.Module]
    classifier: Callable[..., nn.Module] | None
    dropout: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embedding: Embedding, train: bool) -> Output:
        pooled_BD = _pool(self.dense, x_BTD)
        if self.classifier is None:
            return Output(pooled_BD=pooled_BD)
        dropped_BD = Dropout(self.dropout)(pooled_BD, train)
        logits = self.classifier(name="classifier")(dropped_BD).astype(jnp.float32)
        return Output(logits=logits, pooled_BD=pooled_BD)


class TokenHead(nn.Module):
    """Scores of a class for each token (B, T, labels); with two of them, the start and the end of a span."""

    classifier: Callable[..., nn.Module]
    dropout: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embedding: Embedding, train: bool) -> Output:
        x_BTD = Dropout(self.dropout)(x_BTD, train)
        return Output(logits=self.classifier(name="classifier")(x_BTD).astype(jnp.float32))


class NoHead(nn.Module):
    """The hidden states are the output."""

    def __call__(self, x_BTD: jax.Array, embedding: Embedding, train: bool) -> Output:
        return Output()


def dense(equation: str, sizes: tuple[int, int], initializer: Initializer, param_dtype: str) -> Callable[..., Linear]:
    """A factory of a small layer with bias, from the residual stream to `sizes[1]` outputs."""
    return lambda name: Linear(equation, sizes, ("embed", "head"), initializer, ("head",), param_dtype, name=name)


def _pool(make: Callable[..., nn.Module], x_BTD: jax.Array) -> jax.Array:
    return jnp.tanh(make(name="pooler")(x_BTD[:, :1]))[:, 0]
