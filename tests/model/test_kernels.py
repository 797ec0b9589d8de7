"""Fused attention: what is passed to the kernels, their results against the reference, and who gets which."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import kernels, parameters
from model.attention import attention, reference_attention
from model.build import build
from model.config import ModelConfig
from model.kernels import Cuts, Need, choose_attention, refusal
from model.losses import language_model_loss
from model.mask import MaskSpec
from model.sharding import MESH_AXES, ShardingRules
from tests import tiny
from train.mesh import MeshConfig, batch_sharding, make_mesh

B, H, G, T, K = 2, 4, 2, 128, 64
SEGMENTS = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], T // 4, axis=1), jnp.int32)
MASKS = {
    "causal": MaskSpec(),
    "full": MaskSpec(causal=False),
    "window": MaskSpec(window=40),
    "segments": MaskSpec(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS),
    "all": MaskSpec(causal=False, window=40, query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS),
}
SCALE = 0.2
RULES = ShardingRules()
ONE = dict.fromkeys(MESH_AXES, 1)
FITS = Need("bfloat16", 64, 512, 512, causal=True)
LLAMA = ModelConfig(
    vocab_size=256, max_length=512, num_layers=1, embed_dim=256, num_heads=4, num_kv_heads=2, head_dim=128,
    positions="rotary", norm="rms", mlp="swiglu", bias="none", tied_output=False, compute_dtype="bfloat16",
)  # fmt: skip


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, H, T, K), (B, G, T, K), (B, G, T, K), (B, H, T, K))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attend):
    q, k, v, weight = inputs()

    def total(q, k, v):
        out = attend(q, k, v)
        return jnp.sum(weight * out), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


def assert_is_the_reference(attend, mask, softcap=0.0, rules=RULES):
    expected = value_and_gradients(lambda q, k, v: reference_attention(q, k, v, None, mask, SCALE, softcap, None))
    found = value_and_gradients(lambda q, k, v: attend(q, k, v, mask, SCALE, softcap, rules))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_splash_is_the_reference(mask):
    softcap = 1.5 if mask == "all" else 0.0
    with jax.set_mesh(tiny.mesh()):
        assert_is_the_reference(functools.partial(kernels.splash, interpret=True), MASKS[mask], softcap)


def test_splash_runs_on_the_part_of_each_device():
    """Two parts of the batch, two of the heads: nothing is gathered."""
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=2)):
        splash = functools.partial(kernels.splash, interpret=True)
        assert_is_the_reference(splash, MASKS["segments"])
        q, k, v, _ = inputs()
        rules = ShardingRules()
        placed = jax.NamedSharding(tiny.mesh(fsdp=2, tensor=2), rules.spec("batch", "heads", "length", "head_dim"))
        q, k, v = (jax.device_put(x, placed) for x in (q, k, v))
        run = jax.jit(lambda q, k, v: splash(q, k, v, MaskSpec(), SCALE, 0.0, rules))
        assert run(q, k, v).sharding.shard_shape(q.shape) == (B // 2, H // 2, T, K)
        assert "all-gather" not in run.lower(q, k, v).compile().as_text()


@pytest.mark.parametrize(("tensor", "kv_heads"), [(2, None), (4, "tensor")])
def test_fewer_keys_than_devices_are_cut_like_their_queries(tensor, kv_heads):
    """Two key-value heads that lie whole on each device, or on fewer devices than there are."""
    rules = ShardingRules(kv_heads=kv_heads)
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=tensor)):
        assert_is_the_reference(functools.partial(kernels.splash, interpret=True), MASKS["segments"], rules=rules)


@pytest.mark.parametrize("kv_heads", [None, "tensor"])
def test_cudnn_finds_keys_cut_like_queries(kv_heads, monkeypatch):
    """It does not compile otherwise."""
    cut, original = {}, jax.nn.dot_product_attention

    def plain(q, k, v, implementation, **options):
        for name, x in {"q": q, "k": k, "v": v}.items():
            jax.debug.inspect_array_sharding(x, callback=lambda s, n=name, x=x: cut.update({n: s.shard_shape(x.shape)}))
        return original(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=4)):
        q, k, v, _ = inputs()
        q = RULES.constrain(q, "batch", "heads", "length", "head_dim")
        rules = ShardingRules(kv_heads=kv_heads)
        jax.jit(lambda q, k, v: kernels.cudnn(q, k, v, MaskSpec(), SCALE, 0.0, rules)).lower(q, k, v).compile()
    assert cut == dict.fromkeys("qkv", (B // 2, T, H // 4, K))


@pytest.mark.parametrize("mask", ["causal", "full", "window"])
def test_cudnn_is_told_what_the_reference_does(mask, monkeypatch):
    """The same arguments, to the same function of JAX in plain XLA: there is no GPU here."""
    given, original = [], jax.nn.dot_product_attention

    def plain(*args, implementation, **options):
        given.append(implementation)
        return original(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    with jax.set_mesh(tiny.mesh()):
        assert_is_the_reference(kernels.cudnn, MASKS[mask])
    assert set(given) == {"cudnn"}


def test_a_call_that_the_kernel_cannot_do_is_left_to_xla(monkeypatch):
    """Decoding behind a cache, a bias, dropout, a prefix: the kernel would compute something else."""
    calls = []
    monkeypatch.setitem(kernels.KERNELS, "splash", lambda q, *_: calls.append(q.shape) or q)
    (q, k, v, _), causal = inputs(), MaskSpec()

    def fused(bias=None, mask=causal, rows=B, **options):
        calls.clear()
        options = {"rules": RULES, "scale": SCALE, "impl": "splash"} | options
        run = functools.partial(attention, **options)
        jax.eval_shape(run, q[:rows], k[:rows], v[:rows], bias, mask)
        return bool(calls)

    with jax.set_mesh(tiny.mesh()):
        assert fused() and fused(mask=MASKS["segments"], softcap=2.0)
        assert not fused(bias=jnp.zeros((1, H, T, T)))
        assert not fused(mask=MaskSpec(query_offset=jnp.int32(0)))
        assert not fused(mask=MaskSpec(prefix_BS=SEGMENTS))
    with jax.set_mesh(tiny.mesh(data=2)):
        assert fused() and not fused(rows=1)
    with jax.set_mesh(tiny.mesh(tensor=2)):
        assert fused() and not fused(rules=ShardingRules(heads=None, kv_heads=None, head_dim="tensor"))
    with jax.set_mesh(tiny.mesh(tensor=8)):
        assert not fused()  # four heads


@pytest.mark.parametrize(("impl", "change", "words"), [
    ("cudnn", {}, ""), ("splash", {}, ""),
    ("cudnn", {"window": True}, ""),
    ("splash", {"causal": False, "window": True, "segments": True, "softcap": True}, ""),
    ("cudnn", {"dtype": "float32"}, "float32 (only bfloat16)"), ("splash", {"dtype": "float32"}, ""),
    ("cudnn", {"head_dim": 256}, "heads of size 256 (multiples of 8 up to 128)"),
    ("cudnn", {"head_dim": 60}, "heads of size 60 (multiples of 8 up to 128)"),
    ("splash", {"head_dim": 80}, "heads of size 80 (multiples of 64)"),
    ("cudnn", {"softcap": True, "segments": True}, "a softcap, segments"),
    ("cudnn", {"window": True, "causal": False}, "a window to both sides"),
    ("splash", {"queries": 500}, "500 queries and 512 keys (multiples of 128)"),
    ("splash", {"bias": True, "dropout": True}, "a bias on the scores, dropout of attention weights"),
    ("splash", {"rows": 6, "heads": 4, "cuts": Cuts(batch=4, heads=8)},
     "6 rows that 4 devices share, 4 heads that 8 devices share"),
    ("cudnn", {"cuts": Cuts(length=2, head_dim=2)},
     "a length that the mesh cuts (keys go round a ring), a head size that the mesh cuts"),
    ("cudnn", {"prefix": True, "in_order": False},
     "a prefix that is seen from both sides, queries that begin behind the first slot"),
])  # fmt: skip
def test_what_a_kernel_refuses(impl, change, words):
    assert refusal(impl, FITS._replace(**change)) == words


def choose(config, platform, *, rules=RULES, mesh=ONE, **rows):
    return choose_attention(config, platform, rules, mesh, **rows)


def test_the_choice_and_its_reason():
    T5 = dataclasses.replace(LLAMA, architecture="encoder_decoder", positions="relative")
    packed = {"length": 512, "segments": True}
    assert choose(LLAMA, "cpu", length=512) == ("xla", "no kernel for cpu")
    lstm = ModelConfig(architecture="lstm", embed_dim=32)
    assert choose(lstm, "gpu", length=512) == ("xla", "an architecture 'lstm' has no attention")
    assert choose(LLAMA, "gpu", length=512) == ("cudnn", "fused, for gpu")
    assert choose(LLAMA, "tpu", **packed) == ("splash", "fused, for tpu")
    assert choose(LLAMA, "gpu", **packed) == ("xla", "cudnn does not do segments")
    assert choose(LLAMA, "tpu") == ("splash", "fused, for tpu")  # rows of any length: each call is looked at
    assert choose(LLAMA, "tpu", length=512, mesh=ONE | {"context": 2})[0] == "xla"
    assert choose(T5, "tpu", length=512, source_length=512) == ("xla", "splash does not do a bias on the scores")
    vanilla = dataclasses.replace(T5, positions="sinusoidal")
    assert choose(vanilla, "tpu", length=512, source_length=128)[0] == "splash"
    why = "splash does not do 100 queries and 100 keys (multiples of 128); 512 queries and 100 keys (multiples of 128)"
    assert choose(vanilla, "tpu", length=512, source_length=100) == ("xla", why)
    for change in ({"dropout": 0.1}, {"prefix_lm": True}, {"attention_softcap": 1.0}, {"compute_dtype": "float32"}):
        assert choose(dataclasses.replace(LLAMA, **change), "gpu", length=512)[0] == "xla", change
    assert choose(dataclasses.replace(LLAMA, attention_impl="reference"), "tpu", length=512)[0] == "reference"


def test_a_kernel_by_name_must_fit():
    named = dataclasses.replace(LLAMA, attention_impl="cudnn")
    with pytest.raises(ValueError, match="'cudnn', for gpu or cuda, and the devices are cpu: use auto"):
        choose(named, "cpu", length=512)
    with pytest.raises(ValueError, match="'cudnn', which does not do a softcap: use auto or xla"):
        choose(dataclasses.replace(named, attention_softcap=30.0), "gpu", length=512)
    with pytest.raises(ValueError, match="which does not do a length that the mesh cuts"):
        choose(named, "gpu", length=512, mesh=ONE | {"context": 2})
    with pytest.raises(ValueError, match="does not do 4 heads that 8 devices share: use auto or xla"):
        choose(named, "gpu", length=512, mesh=ONE | {"tensor": 8})
    with pytest.raises(ValueError, match="does not do a head size that the mesh cuts"):
        choose(
            named, "gpu", rules=ShardingRules(heads=None, kv_heads=None, head_dim="tensor"), mesh=ONE | {"tensor": 2}
        )
    with pytest.raises(ValueError, match="'cudnn': an architecture 'lstm' has no attention, use auto"):
        dataclasses.replace(LLAMA, architecture="lstm", attention_impl="cudnn")
    assert choose(named, "gpu", length=512)[0] == "cudnn"


@pytest.mark.slow
def test_a_step_with_splash_compiles_for_tpus(monkeypatch):
    """Eight v5e chips, by their own compiler: weights cut by fsdp, heads by tensor, documents packed."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh, rules = make_mesh(MeshConfig(1, 4, 2, 1, 1), chips), ShardingRules()
    assert choose(LLAMA, chips[0].platform, length=512, segments=True)[0] == "splash"
    with jax.set_mesh(mesh):
        model = build(dataclasses.replace(LLAMA, attention_impl="splash", remat="attention"), rules)
        weights = parameters.weights(model)
        shardings = parameters.shardings(weights, rules, mesh)
        params = jax.tree.map(lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=s), weights, shardings)
        placed = batch_sharding(mesh, rules)
        names = ("inputs", "targets", "weights", "segments", "positions")
        batch = {name: jax.ShapeDtypeStruct((8, 512), jnp.int32, sharding=placed) for name in names}
        loss_fn = language_model_loss(model, rules)
        step = jax.jit(jax.grad(lambda params, batch: loss_fn(params, batch, None).loss), out_shardings=shardings)
        text = step.lower(params, batch).compile().as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text and "splash_mha_dq" in text
    assert "[2,2,512,512]" not in text  # scores of a device's rows and heads
