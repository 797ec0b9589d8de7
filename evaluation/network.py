"""A network with its weights and tokeniser: ids in, numbers out. What the language models of each family share."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.tokenizers.tokenizer import Tokenizer
from model.build import build
from model.config import ModelConfig
from model.kernels import choose_attention
from model.losses import Sums, language_model_loss
from model.ring import check_cut
from model.sharding import ShardingRules, shards
from model.transformer import apply

TOKENS = 8192  # about as many are embedded or scored at once
NARROWEST = 16  # shorter texts are padded to this
LOGITS = 2**29  # bytes of f32 logits that are there at once while texts are scored


class Network:
    """Weights on a mesh, and what turns text into their ids.

    Attributes:
        params: the tree of weights. config: the resolved `ModelConfig`. tokenizer: text to ids and back.
    """

    def __init__(
        self, config: ModelConfig, params: Any, tokenizer: Tokenizer, mesh: Mesh, rules: ShardingRules | None = None
    ) -> None:
        self.config, self.params, self.tokenizer, self.mesh = config.resolved(), params, tokenizer, mesh
        self.rules = rules or ShardingRules()
        check_cut(config, self.rules, dict(mesh.shape))
        # How it was trained says nothing of the devices here.
        impl = config.attention_impl if config.attention_impl in ("xla", "reference") else "auto"
        config, platform = dataclasses.replace(config, attention_impl=impl), mesh.devices.flat[0].platform
        impl, _ = choose_attention(config, platform, self.rules, mesh.shape)
        self.network = build(dataclasses.replace(config, attention_impl=impl), self.rules)

        def part(params: Any, name: str, ids_BT: jax.Array, options: dict[str, Any]) -> jax.Array:
            return getattr(apply(self.network, params, ids_BT, **options), name)

        # Whole on every device: left to the compiler, few rows are cut in ways that a mesh has no name for.
        whole = NamedSharding(mesh, PartitionSpec())
        self._part = jax.jit(part, static_argnames="name", out_shardings=whole)
        self._sums = jax.jit(self._summed)

    def run(self, name: str, ids_BT: Any, **options: Any) -> np.ndarray:
        """One part of the network's `Output`, as float32. Options that are None are left out.

        Raises:
            ValueError: ids of another shape or type, or outside the vocabulary; a text longer than the context.
        """
        given = {key: np.asarray(value) for key, value in options.items() if value is not None}
        arrays = {"ids_BT": np.asarray(ids_BT), **given}
        if name == "logits" and self.config.head in ("pooler", "none"):
            raise ValueError(f"this network has head {self.config.head!r}: it puts out hidden states, no logits")
        if name == "hidden_BTD" and self.config.architecture == "ngram":
            raise ValueError("an n-gram model counts: it puts out logits, no hidden states")
        for key, array in arrays.items():
            if array.ndim != 2 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
                raise ValueError(
                    f"{self._plain(key)} has shape {array.shape} and type {array.dtype}: pass integers of shape "
                    "(batch, length)"
                )
            beside = "source_BS" if key == "source_segments_BS" else "ids_BT"
            shared = slice(1) if key == "source_BS" else slice(2)  # axes: a source has a length of its own
            if array.shape[shared] != arrays[beside].shape[shared]:
                raise ValueError(
                    f"{self._plain(key)} of shape {array.shape} and {self._plain(beside)} of shape "
                    f"{arrays[beside].shape} do not go together"
                )
            self._check_range(key, array)
        arrays = {key: array.astype(np.int32) for key, array in arrays.items()}
        with jax.set_mesh(self.mesh):
            return np.asarray(self._part(self.params, name, arrays.pop("ids_BT"), arrays), np.float32)

    def score(self, batch: dict[str, np.ndarray]) -> tuple[float, float]:
        """Nats of a batch, as `model.losses.language_model_loss` reads it, and how many tokens it predicts.

        Raises:
            ValueError: ids outside the vocabulary, or a text longer than the context.
        """
        for name in ("source", "inputs", "targets"):
            if name in batch:
                self._check_range("source_BS" if name == "source" else "ids_BT", batch[name])
        with jax.set_mesh(self.mesh):
            sums = jax.device_get(self._sums(self.params, batch))
        return float(sums.loss), float(sums.weight)

    def hidden(self, ids: Any, mask: Any = None) -> np.ndarray:
        """Float32 (batch, length, embed_dim): what the network puts out before its head; `mask` is 0 on padding."""
        return self.run("hidden_BTD", ids, segments_BT=mask)

    def padded(self, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts in one array, padded on the right, and the mask that is 1 on their tokens; each int32 (B, T)."""
        if not texts:
            raise ValueError("no text was given: pass at least one")
        for number, text in enumerate(texts):
            if not text:
                raise ValueError(f"text {number} has no tokens: pass at least one")
        pad = self.tokenizer.special_ids.get("pad", 0)
        length = max(map(len, texts))
        ids = np.full((len(texts), length), pad, np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        return ids, mask

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """One vector a text, float32 (texts, embed_dim) (or (embed_dim,) of one string): the mean over its tokens of
        what the encoder, or a decoder's last norm, puts out. Not normalised (Reimers & Gurevych 2019, mean pooling).
        """
        if isinstance(texts, str):
            return self.embed([texts])[0]
        rows = [self.tokenizer.wrap(ids) for ids in map(self.tokenizer.encode, texts)]
        vectors = np.zeros((len(rows), self.config.embed_dim), np.float32)
        for places, ids, mask in self.batches(rows):
            hidden_BTD, weight_BT1 = self.hidden(ids, mask), mask[:, :, None].astype(np.float32)
            means_BD = (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
            vectors[places] = means_BD[: len(places)]
        return vectors

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Rows of alike lengths together: their places, and ids and mask as `padded`.

        Widths and numbers of rows are powers of two, filled up with copies of the last row, so that few shapes are
        compiled. A batch has about `TOKENS` tokens at most.
        """
        for number, row in enumerate(rows):
            if not row:
                raise ValueError(f"text {number} has no tokens: pass at least one")
        by_width: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_width.setdefault(self._width(len(row)), []).append(place)
        for width, places in sorted(by_width.items()):
            most = max(TOKENS // width, 1)
            for first in range(0, len(places), most):
                chosen = places[first : first + most]
                count = min(1 << (len(chosen) - 1).bit_length(), most)
                filled = [rows[place] for place in chosen] + [rows[chosen[-1]]] * (count - len(chosen))
                ids, mask = self.padded(filled)
                fill = ((0, 0), (0, width - ids.shape[1]))
                yield chosen, np.pad(ids, fill), np.pad(mask, fill)

    def _width(self, length: int) -> int:
        """The least power of two that is at least `length`, or the context where that is shorter."""
        return max(length, min(1 << max(length - 1, NARROWEST - 1).bit_length(), self.config.max_length))

    def _summed(self, params: Any, batch: Any) -> Sums:
        """Traced: the sums of a batch, in as many parts one after the other as its logits need to keep to `LOGITS`.

        The smallest part is one token of each row on each device, whatever the vocabulary.
        """
        (B, T), rules = batch["inputs"].shape, self.rules
        if T % (devices := shards(rules.length, dict(self.mesh.shape))):
            rules, devices = dataclasses.replace(rules, length=None), 1  # what does not divide stays whole
        size, here = 4 * B * T * self.config.vocab_size, T // devices
        chunks = next(n for n in range(1, here + 1) if here % n == 0 and (size <= n * LOGITS or n == here))
        return language_model_loss(self.network, rules, chunks=chunks)(params, batch, None)

    def _check_range(self, key: str, array: np.ndarray) -> None:
        """Raises ValueError for ids that are outside their table, or more than there are learned positions."""
        c = self.config
        sizes = {"ids_BT": c.vocab_size, "source_BS": c.vocab_size, "token_types_BT": c.token_types}
        if key not in sizes:
            return
        if c.attends and c.positions == "learned" and array.shape[1] > c.max_length:
            raise ValueError(f"{array.shape[1]} tokens do not fit the context of {c.max_length}: cut the input")
        if array.size and not 0 <= array.min() <= array.max() < sizes[key]:
            table = "there are" if key == "token_types_BT" else "the vocabulary is"
            raise ValueError(
                f"{self._plain(key)} run from {array.min()} to {array.max()}: {table} 0 to {sizes[key] - 1}"
            )

    def _plain(self, key: str) -> str:
        """What a caller knows an argument of the network as."""
        names = {"ids_BT": "ids", "segments_BT": "mask", "source_BS": "ids", "source_segments_BS": "mask"}
        decoder = "decoder_" if self.config.architecture == "encoder_decoder" and key.endswith("_BT") else ""
        return decoder + names.get(key, key.rsplit("_", 1)[0])
