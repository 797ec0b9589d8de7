"""What accelerators can do, from data sheets: peak FLOP/s, memory, and how fast their wires are."""

import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Figures are of one JAX device: a chip, or one of the `devices` that a chip shows."""

    kinds: tuple[str, ...]  # how `device_kind` begins
    peak_flops: float  # dense bfloat16 FLOP/s, no sparsity
    hbm_bytes: int
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s one way: of one ICI link of a TPU, of all NVLinks of a GPU together
    network_bandwidth: float  # bytes/s one way to another slice, or to another machine
    torus: int = 0  # dimensions of the ICI torus: 2 or 3; 0 = a switch (GPU)
    devices: int = 1  # that JAX shows of one chip
    usable_gib: float = 0.0  # that the compiler lets one program take; 0: not seen

    @property
    def limit_bytes(self) -> int:
        """What a program may take of the memory: all of the data sheet where no compiler was seen to say otherwise."""
        return round(self.usable_gib * GIB) or self.hbm_bytes

    def peak(self, compute_dtype: str) -> float | None:
        """Peak FLOP/s of a device in a precision, or None where the data sheets here do not give it."""
        return self.peak_flops if compute_dtype == "bfloat16" else None


# TPU: the system architecture pages of cloud.google.com/tpu/docs (peak, HBM and its bandwidth); links and network from
# Austin et al. 2025, "How to Scale Your Model", part 2 (25 GB/s of network a host of 4 chips, of v5e and v6e 8); of v7x
# the 1.2 TB/s of its page over 6 links. GPU: NVIDIA's data sheets; network: 400 (A100: 200) Gb/s of InfiniBand each, as
# in DGX machines. Usable: "exceeds available HBM (15.75G)", as libtpu 0.0.42 refuses what is too large for a topology
# of these chips (of v5p it gives out more than the 95 GiB of the page). Those come first whose kind begins with
# another's.
CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1228e9, 45e9, 6.25e9, torus=3, usable_gib=30.75),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 50e9, 3.125e9, torus=2, usable_gib=15.75),
    "v5p": Chip(("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, torus=3, usable_gib=95.74),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1640e9, 100e9, 3.125e9, torus=2, usable_gib=31.25),
    "tpu7x": Chip(
        ("TPU7x", "TPU v7x"), 1153.5e12, 96 * GIB, 3690e9, 100e9, 6.25e9, torus=3, devices=2, usable_gib=94.75
    ),
    "h100-pcie": Chip(("NVIDIA H100 PCIe",), 756e12, 80 * GIB, 2000e9, 64e9, 50e9),
    "h100-nvl": Chip(("NVIDIA H100 NVL",), 835e12, 94 * GIB, 3900e9, 300e9, 50e9),
    "h100": Chip(("NVIDIA H100",), 989e12, 80 * GIB, 3350e9, 450e9, 50e9),
    "h200": Chip(("NVIDIA H200",), 989e12, 141 * 10**9, 4800e9, 450e9, 50e9),
    "a100-80gb": Chip(("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"), 312e12, 80 * GIB, 2039e9, 300e9, 25e9),
    "a100": Chip(("NVIDIA A100",), 312e12, 40 * GIB, 1555e9, 300e9, 25e9),
}


def chip_of(device: Any) -> Chip | None:
    """The data sheet of a JAX device, or None where there is none (a CPU)."""
    return next((chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kinds)), None)
