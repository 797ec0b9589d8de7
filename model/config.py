"""One frozen description of a network. Every family is a set of values of it, never a subclass."""

import dataclasses
from collections.abc import Sequence

CHOICES = {
    "architecture": ("decoder", "encoder", "encoder_decoder", "rnn", "lstm", "gru", "ngram"),
    "head": ("lm", "masked_lm", "pretraining", "classification", "token_classification", "span", "pooler", "none"),
    "positions": ("learned", "sinusoidal", "relative", "rotary", "alibi", "none"),
    "rope_scaling": ("none", "linear", "llama3"),
    "norm": ("layer", "rms", "none"),
    "norm_placement": ("pre", "post"),
    "mlp": ("gelu", "gelu_exact", "relu", "silu", "swiglu", "geglu", "geglu_exact", "reglu"),
    "bias": ("none", "qkv", "attention", "mlp", "all"),
    "init_scheme": ("gpt2", "t5"),
    "attention_impl": ("auto", "xla", "reference", "cudnn", "splash"),
    "compute_dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}
# Activations of a block that the backward pass can find instead of computing them again.
REMAT_NAMES = ("query", "key", "value", "attention", "attention_output", "mlp_hidden")
RECURRENT = ("rnn", "lstm", "gru")
LABELLED = ("classification", "token_classification")  # heads that need num_labels


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a language model. Sizes that are 0 are derived by `resolved()`.

    Raises:
        ValueError: a size that is not positive or does not divide, a choice that does not exist, or choices that do
            not go together.
    """

    # What it is
    architecture: str = "decoder"  # decoder | encoder | encoder_decoder | rnn | lstm | gru | ngram
    head: str = "lm"  # lm; of an encoder: masked_lm | pretraining | classification | token_classification | span |
    # pooler | none
    num_labels: int = 0  # classes of a classification head
    ngram_order: int = 5  # tokens of an n-gram, the predicted one included
    # Sizes
    vocab_size: int = 50_304  # V: rows of the embedding; in an experiment, 0 = the tokeniser's vocabulary
    max_length: int = 1_024  # tokens a sequence may have
    num_layers: int = 12  # L: blocks; of an encoder-decoder, those of the decoder
    num_encoder_layers: int = 0  # blocks of the encoder of an encoder-decoder; 0 = num_layers
    embed_dim: int = 768  # D: width of the residual stream
    num_heads: int = 12  # H: query heads
    num_kv_heads: int = 0  # G: key and value heads (Ainslie et al. 2023); 0 = num_heads
    head_dim: int = 0  # K: size of one head; 0 = embed_dim / num_heads
    mlp_dim: int = 0  # F: hidden width of the MLP; 0 = 4 * embed_dim
    # Embeddings and positions
    token_types: int = 0  # rows of a second table, for the segments of a pair (BERT); 0 = none
    scale_embeddings: bool = False  # times sqrt(embed_dim) (Vaswani et al. 2017, section 3.4)
    embedding_norm: bool = False  # a norm after the embeddings (BERT)
    positions: str = "learned"  # learned | sinusoidal | relative (T5) | rotary | alibi | none
    position_offset: int = 0  # row of the position table that the first token takes (RoBERTa: 2)
    rope_theta: float = 10_000.0  # base of the rotary wavelengths (Su et al. 2021)
    rope_scaling: str = "none"  # none | linear (Chen et al. 2023) | llama3
    rope_factor: float = 1.0  # a context this many times longer than that of pretraining
    rope_low_factor: float = 1.0  # llama3: wavelengths above rope_original_length / this are stretched in full
    rope_high_factor: float = 4.0  # llama3: wavelengths below rope_original_length / this are left alone
    rope_original_length: int = 8_192  # llama3: the context before stretching
    relative_buckets: int = 32  # classes of distances, each with a bias of its own (Raffel et al. 2020, section 2.1)
    relative_max_distance: int = 128  # distances from this one on share the last bucket
    # Blocks
    norm: str = "layer"  # layer | rms | none (only rnn, lstm and gru)
    norm_epsilon: float = 1e-5  # added to the variance
    norm_placement: str = "pre"  # pre | post (after each residual sum; Vaswani et al. 2017)
    mlp: str = "gelu"  # gelu (tanh form) | gelu_exact | relu | silu; gated: swiglu | geglu | geglu_exact | reglu
    bias: str = "all"  # none | qkv | attention (qkv and output) | mlp | all (both, and layer norms)
    attention_scale: float = 0.0  # of query-key products; 0 = 1 / sqrt(head_dim)
    qk_norm: bool = False  # RMS norm of each query and key head (Henry et al. 2020)
    attention_softcap: float = 0.0  # attention scores become c * tanh(s / c) (Gemma 2); 0 = off
    window: int = 0  # a token attends to this many latest tokens, itself included (Mistral); 0 = all
    # Experts
    experts: int = 0  # E: MLPs of a layer, of which each token takes some (Shazeer et al. 2017); 0 = one, for all
    experts_per_token: int = 2  # k: experts that a token takes
    capacity_factor: float = 1.25  # in training an expert takes at most this times k T / E tokens of a row of T and
    # drops the rest; 0 = no limit
    load_balance_loss: float = 0.01  # weight of the load-balancing loss (Fedus et al. 2022, eq. 4)
    router_z_loss: float = 0.001  # weight of the router z-loss (Zoph et al. 2022, eq. 5)
    # Output
    tied_output: bool = True  # the output projection is the embedding table
    scale_output: bool = False  # times 1 / sqrt(embed_dim) before a tied output (T5 1.0)
    logits_softcap: float = 0.0  # logits become c * tanh(l / c); 0 = off
    prefix_lm: bool = False  # a decoder that reads its prompt in both directions; training by prefix_lm sets it
    decoder_start_id: int = 0  # first input of the decoder of an encoder-decoder (T5: the padding id)
    # Learning rates that carry over from a narrower network (muP: Yang et al. 2022, table 8)
    base_width: int = 0  # embed_dim of the network that they were found with, MLP and heads in proportion; 0 = off
    base_head_dim: int = 0  # its head_dim: scores fall as 1 / head_dim from there; 0 = the same head_dim, more heads
    # Numerics
    dropout: float = 0.0  # rate on embeddings, attention weights and branch outputs
    init_std: float = 0.02  # standard deviation of the initial weights (gpt2)
    init_scheme: str = "gpt2"  # gpt2: normal(0, init_std) | t5: by fan-in (Raffel et al. 2020)
    attention_impl: str = "auto"  # auto (what the devices are best at) | xla | reference | cudnn (GPU) | splash (TPU)
    compute_dtype: str = "float32"  # of activations and matrix products
    param_dtype: str = "float32"  # of the stored weights
    remat: str = "none"  # what the backward pass recomputes: none | dots (all but products with weights that all
    # tokens share) | full | all but named activations of a block, joined by commas (of REMAT_NAMES) | budget (all but
    # what fits remat_bytes)
    remat_bytes: float = 0.0  # with remat "budget": bytes of activations that a device may keep for the backward pass
    remat_offload: str = ""  # named activations kept in host memory until the backward pass, joined by commas
    pipeline_microbatches: int = 0  # microbatches of the pipeline over mesh stages; 0 = chosen, at most 4 a stage
    scan_unroll: int = 1  # layers per step of the compiled loop; 0 = all. Never changes the weights

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"model.{field} is {value!r}: use one of {', '.join(allowed)}")
        self._check_sizes()
        self._check_positions()
        self._check_head()
        self._check_width()
        self._check_experts()
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1")
        for field in ("attention_scale", "attention_softcap", "logits_softcap", "window", "remat_bytes"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be positive, or 0 for none")
        for field in ("init_std", "rope_theta", "rope_factor", "rope_low_factor", "rope_high_factor"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be positive and finite")
        if not 0 <= self.scan_unroll <= self.num_layers:
            raise ValueError(
                f"model.scan_unroll is {self.scan_unroll}: use 1 to {self.num_layers} (num_layers), or 0 for all"
            )
        own = self.token_types or self.embedding_norm or self.window or self.pipeline_microbatches
        if not self.attends and (self.remat != "none" or own):
            raise ValueError(
                f"model.remat, token_types, embedding_norm, window and pipeline_microbatches mean nothing to an "
                f"architecture {self.architecture!r}: leave them at their defaults"
            )
        if not self.attends and self.attention_impl in ("cudnn", "splash"):
            raise ValueError(
                f"model.attention_impl is {self.attention_impl!r}: an architecture {self.architecture!r} has no "
                "attention, use auto"
            )
        self._check_remat()
        if self.norm == "none" and self.architecture not in RECURRENT:
            raise ValueError(f"model.norm is 'none': only {', '.join(RECURRENT)} do without, use layer or rms")
        if self.architecture == "ngram" and not 1 <= self.ngram_order <= 6:
            raise ValueError(f"model.ngram_order is {self.ngram_order}: use 1 to 6")

    def _check_sizes(self) -> None:
        for field in (
            "max_length",
            "num_layers",
            "embed_dim",
            "num_heads",
            "relative_buckets",
            "relative_max_distance",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be at least 1")
        for field in ("vocab_size", "num_kv_heads", "head_dim", "mlp_dim", "num_encoder_layers"):
            if getattr(self, field) < 0:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be at least 1, or 0 to derive it")
        for field in (
            "token_types",
            "position_offset",
            "num_labels",
            "decoder_start_id",
            "pipeline_microbatches",
            "base_width",
            "base_head_dim",
        ):
            if getattr(self, field) < 0:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must not be negative")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"model.norm_epsilon is {self.norm_epsilon}: it must be above 0 and below 1")
        if not self.attends:
            return
        if not self.head_dim and self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads {self.num_heads}: "
                f"use {_joined(_divisors(self.embed_dim))} heads, or set model.head_dim"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads {self.num_kv_heads}: "
                f"use {_joined(_divisors(self.num_heads))} key-value heads"
            )

    def _check_positions(self) -> None:
        if not self.attends:
            return
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise ValueError(f"model.head_dim is {head_dim}: rotary positions turn pairs and need an even head size")
        if self.positions == "sinusoidal" and self.embed_dim % 2:
            raise ValueError(
                f"model.embed_dim is {self.embed_dim}: sinusoidal positions come in pairs, use an even one"
            )
        if self.rope_factor < 1 or not self.rope_low_factor < self.rope_high_factor:
            raise ValueError(
                f"model.rope_factor {self.rope_factor} must be at least 1, and rope_low_factor {self.rope_low_factor} "
                f"below rope_high_factor {self.rope_high_factor}"
            )
        # An encoder has half of the buckets for each side.
        fewest = self.relative_buckets // (4 if self.architecture != "decoder" else 2)
        most = self.relative_buckets // (4 if self.architecture == "encoder" else 2)
        if self.positions == "relative" and not 0 < fewest <= most < self.relative_max_distance:
            raise ValueError(
                f"model.relative_buckets {self.relative_buckets} tell {most} distances apart one by one: that must be "
                f"at least 1 and below model.relative_max_distance {self.relative_max_distance}"
            )
        if self.rope_original_length < 1:
            raise ValueError(f"model.rope_original_length is {self.rope_original_length}: it must be at least 1")

    def _check_head(self) -> None:
        if (self.architecture == "encoder") == (self.head == "lm"):
            heads = ", ".join(head for head in CHOICES["head"] if (head != "lm") == (self.architecture == "encoder"))
            raise ValueError(f"model.head is {self.head!r}: an architecture {self.architecture!r} has {heads}")
        if (self.head in LABELLED) != (self.num_labels > 0):
            need = "at least 1" if self.head in LABELLED else f"0: only {' and '.join(LABELLED)} heads have labels"
            raise ValueError(f"model.num_labels is {self.num_labels}: with head {self.head!r} it must be {need}")
        if self.head in ("masked_lm", "pretraining") and not self.tied_output:
            raise ValueError(f"model.tied_output is False: the {self.head} head is tied to the embedding")
        if self.prefix_lm and self.architecture != "decoder":
            raise ValueError(f"model.prefix_lm is True: only a decoder has a prompt, not {self.architecture!r}")
        if self.scale_output and not self.tied_output:
            raise ValueError("model.scale_output is True: only a tied output is scaled")

    def _check_remat(self) -> None:
        """Each activation is named once: kept on the device, or offloaded."""
        kept = self.remat.split(",") if self.remat not in ("none", "dots", "full", "budget") else []
        moved = self.remat_offload.split(",") if self.remat_offload else []
        if (unknown := [name for name in kept if name not in REMAT_NAMES]) or len(set(kept)) < len(kept):
            raise ValueError(
                f"model.remat is {self.remat!r}: use none, dots, full, budget, or some of {','.join(REMAT_NAMES)}, "
                f"each once and joined by commas{f' ({unknown[0]!r} is none)' if unknown else ''}"
            )
        if any(name not in REMAT_NAMES for name in moved) or len(set(kept + moved)) < len(kept + moved):
            raise ValueError(
                f"model.remat_offload is {self.remat_offload!r}: use some of {','.join(REMAT_NAMES)}, each once, "
                f"joined by commas and not in model.remat ({self.remat!r}) too"
            )
        if moved and self.remat in ("none", "dots", "budget"):
            raise ValueError(
                f"model.remat_offload is {self.remat_offload!r} with model.remat {self.remat!r}: use remat 'full', or "
                "name the activations that stay on the device"
            )
        if (self.remat == "budget") != (self.remat_bytes > 0):
            raise ValueError(
                f"model.remat_bytes is {self.remat_bytes:g} with model.remat {self.remat!r}: remat 'budget' needs a "
                "positive number of bytes, such as 8e9, and the others 0"
            )

    def _check_width(self) -> None:
        if self.base_head_dim and (not self.base_width or self.attention_scale):
            raise ValueError(
                f"model.base_head_dim is {self.base_head_dim}: it sets the scale of scores from a base_width, "
                f"and here model.base_width is {self.base_width} and attention_scale {self.attention_scale}"
            )
        if self.base_width and not (self.attends and self.head == "lm" and self.init_scheme == "gpt2"):
            raise ValueError(
                f"model.base_width is {self.base_width}: it is for Transformers with head 'lm' and init_scheme 'gpt2', "
                f"not {self.architecture!r} with {self.head!r} and {self.init_scheme!r}"
            )
        if self.base_width and self.scale_output:
            raise ValueError("model.scale_output is True: base_width scales the output by the width already")
        if not self.base_width:
            return
        # Every hidden fan-in counts as grown like the width, so the base must have been as narrow in each of them.
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        for field, wide, whole in (
            ("mlp_dim", self.mlp_dim or self.embed_dim, 1),
            ("num_heads * head_dim", self.num_heads * head_dim, self.base_head_dim or head_dim),
        ):
            if wide * self.base_width % (self.embed_dim * whole):
                raise ValueError(
                    f"model.{field} is {wide} at embed_dim {self.embed_dim}: of a base_width {self.base_width} that "
                    f"would be {wide * self.base_width / self.embed_dim:g}, which is no multiple of {whole}. MLP and "
                    "heads must grow in proportion to the width: change them, or give base_head_dim where heads grow"
                )

    def _check_experts(self) -> None:
        if self.experts < 0:
            raise ValueError(f"model.experts is {self.experts}: it must be at least 1, or 0 for a dense MLP")
        if self.experts and not self.attends:
            raise ValueError(f"model.experts is {self.experts}: an architecture {self.architecture!r} has none, use 0")
        if not self.experts:
            names = ("experts_per_token", "capacity_factor", "load_balance_loss", "router_z_loss")
            if changed := [name for name in names if getattr(self, name) != getattr(ModelConfig, name)]:
                raise ValueError(
                    f"model.{changed[0]} is {getattr(self, changed[0])}, but model.experts is 0: set the number of "
                    f"experts, or leave it at {getattr(ModelConfig, changed[0])}"
                )
            return
        if self.base_width:
            raise ValueError(f"model.base_width is {self.base_width}: it says nothing about experts, use 0 with them")
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"model.experts_per_token is {self.experts_per_token}: use 1 to {self.experts} (model.experts)"
            )
        for field in ("capacity_factor", "load_balance_loss", "router_z_loss"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be positive, or 0 for none")

    def resolved(self) -> "ModelConfig":
        """The same network with every derived size written out.

        Raises:
            ValueError: no vocabulary size, which only a tokeniser can tell.
        """
        if not self.vocab_size:
            raise ValueError("model.vocab_size is 0: without a tokeniser to say it, give the number of ids")
        return dataclasses.replace(
            self,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.head_dim or self.embed_dim // self.num_heads,
            mlp_dim=self.mlp_dim or 4 * self.embed_dim,
            num_encoder_layers=(
                (self.num_encoder_layers or self.num_layers) if self.architecture == "encoder_decoder" else 0
            ),
        )

    @property
    def attends(self) -> bool:
        """Whether it is a Transformer: heads, positions and MLPs mean nothing to the others."""
        return self.architecture in ("decoder", "encoder", "encoder_decoder")

    @property
    def width_ratio(self) -> float:
        """Width of the base network over the width of this one, where there is a base."""
        return self.base_width / self.embed_dim if self.base_width else 1.0

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections (Shazeer 2020)."""
        return self.mlp in ("swiglu", "geglu", "geglu_exact", "reglu")


def flops_per_sequence(config: ModelConfig, length: int, source_length: int = 0) -> float:
    """Floating-point operations to train on one sequence: forward and backward, matrix products only.

    6 per token and weight that multiplies it, and 12 L H K per attended position (Chowdhery et al. 2022, PaLM,
    appendix B). Like there, attention counts all positions, causal or not, and recomputation is free. The encoder of
    an encoder-decoder reads `source_length` tokens. An n-gram model multiplies nothing.
    """
    c = config.resolved()
    if c.architecture == "ngram":
        return 0.0
    output = length * c.embed_dim * c.vocab_size if c.head in ("lm", "masked_lm", "pretraining") else 0
    if c.architecture in RECURRENT:
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[c.architecture]
        return 6.0 * (length * c.num_layers * 2 * gates * c.embed_dim**2 + output)
    wide, narrow = c.embed_dim * c.head_dim * c.num_heads, c.embed_dim * c.head_dim * c.num_kv_heads
    mlp = c.embed_dim * c.mlp_dim * (3 if c.gated else 2)
    if c.experts:  # those that a token takes, and the router
        mlp = mlp * c.experts_per_token + c.embed_dim * c.experts
    block = 2 * wide + 2 * narrow + mlp
    products = c.num_layers * length * block + output
    attended = c.num_layers * length * length
    if c.architecture == "encoder_decoder":
        products += c.num_encoder_layers * source_length * block
        products += c.num_layers * (length * 2 * wide + source_length * 2 * narrow)
        attended += c.num_encoder_layers * source_length**2 + c.num_layers * length * source_length
    return 6.0 * products + 12.0 * c.num_heads * c.head_dim * attended


def _divisors(n: int, most: int = 4096) -> list[int]:
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]


def _joined(values: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown + (", …" if len(values) > most else "")
