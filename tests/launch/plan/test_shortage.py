"""The texts of compilers and run times that ran out of memory, as numbers."""

import pytest
from jax.errors import JaxRuntimeError

from launch.plan.shortage import Shortage, shortage

GIB = 2**30
# As libtpu 0.0.42, older TPU compilers and run times, CUDA and the CPU of jax 0.10 say it.
SEEN = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (198.55G) exceeds "
    "available HBM (15.75G).": (198.55 * GIB, 15.75 * GIB),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 30.21G of 15.48G "
    "hbm. Exceeded hbm capacity by 14.73G.\n\nTotal hbm usage >= 30.73G:": (30.21 * GIB, 15.48 * GIB),
    "RESOURCE_EXHAUSTED: Error loading program: Attempting to reserve 3.95G at the bottom of memory. That was not "
    "possible. There are 1.92G free, 0B reserved, and 1.92G reservable.": (3.95 * GIB, 1.92 * GIB),
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.": (4770354232, None),
    "RESOURCE_EXHAUSTED: Out of memory allocating 17592186044416 bytes.": (17592186044416, None),
    "RESOURCE_EXHAUSTED: Attempting to allocate 2.00G. That was not possible. There are 0B free.": (2 * GIB, 0),
    "RESOURCE_EXHAUSTED: Out of memory allocating 4096.": (4096, None),
    # A list of buffers behind it, some of no bytes, with names in which quotes are escaped.
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.00G of 15.75G hbm. Exceeded hbm capacity by "
    "256M.\n\nTotal hbm usage >= 16.00G:\n    arguments         0B\n\n  1. Size: 0B\n     Operator: "
    'op_name="jit(step)/call[name=\\"Used 1.00G of 2.00G hbm\\"]"\n     Shape: f32[0]': (16 * GIB, 15.75 * GIB),
    "RESOURCE_EXHAUSTED: Failed to allocate request for 1.00GiB of device memory": (None, None),
}


@pytest.mark.parametrize("text", SEEN)
def test_what_the_error_says(text):
    asked, there = SEEN[text]
    found = shortage(JaxRuntimeError(text))
    assert found == Shortage(asked and round(asked), there and round(there))


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack. Used 20.00M",
        "INVALID_ARGUMENT: memory",
        "RESOURCE_EXHAUSTED: quota",
    ],
)
def test_what_is_no_lack_of_main_memory(text):
    assert shortage(JaxRuntimeError(text)) is None


def test_what_is_missing():
    assert Shortage(3, 2).missing == 1 and Shortage(2, 3).missing == 0 and Shortage(3, 0).missing == 3
    assert Shortage(None, 2).missing is Shortage(2, None).missing is None
    assert str(Shortage(2 * GIB, 0)) == "out of memory: 2.0 GiB asked for, 0 B there"
