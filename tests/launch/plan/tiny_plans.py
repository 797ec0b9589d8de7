"""A config that compiles in seconds, and a plan made up by hand."""

from ml_collections import ConfigDict

from configs import defaults
from launch.plan.collectives import Collective
from launch.plan.plan import Buffer, Plan, Replicated
from launch.plan.topology import COMPILED

GIB = 2**30


def tiny_config(**mesh: int) -> ConfigDict:
    """Two layers of width 32 on bytes, 8 rows of 16 tokens."""
    config = defaults.get_config()
    config.data.tokenizer = "byte"
    config.model.update(num_layers=2, embed_dim=32, num_heads=4, max_length=16, vocab_size=264)
    config.train.global_batch = 8
    config.mesh.update({"data": 1, **mesh})
    return config


PLAN = Plan(
    config="x",
    topology="v5e:2x2",
    slices=1,
    chip="TPU v5 lite",
    num_chips=4,
    num_devices=4,
    mesh={"data": 1, "fsdp": 4},
    method=COMPILED,
    fits=True,
    limit_bytes=16 * GIB,
    bytes={"parameters": GIB, "optimizer": 2 * GIB, "activations": 2 * GIB, "temporaries": GIB, "total": 6 * GIB},
    named_bytes=3 * GIB // 2,
    buffers=[Buffer(GIB, "bf16[1,2]", "jit(train_step)/mlp/dot_general", "/home/x/model/mlp.py:7")],
    replicated=[Replicated("norm/scale", 12, 4, 36)],
    collectives=[Collective("all-gather", ("fsdp",), GIB, 3, "jit(train_step)/mlp/dot_general", (0, 1, 2, 3))],
    flops_per_step=3e15,
    executed_flops_per_step=4e15,
    traffic=8.19e9,
    compute_seconds=0.005,
    memory_seconds=0.01,
    collective_seconds={"fsdp": 0.01},
    step_seconds=0.01,
    serial_step_seconds=0.025,
    mfu_bound=0.4,
    tokens_per_step=1024,
    tokens_per_day=1024 * 8_640_000.0,
    tokens=1e9,
    days=0.1,
    chip_hours=9.6,
    compile_seconds=3.0,
)
