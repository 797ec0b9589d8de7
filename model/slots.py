"""Rows sorted into slots by their expert ("owner") and back, and products of blocks of rows with the owner's kernel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """The row in each slot and the slot of each row. N, the number of rows, means no row; S, of slots, no slot."""

    row_S: jax.Array
    slot_N: jax.Array


def place(
    owner_N: jax.Array,
    turn_N: jax.Array,
    counts_E: jax.Array,
    first_E: jax.Array,
    room_E: jax.Array,
    owner_S: jax.Array,
) -> Places:
    """Gives each row a slot of its owner, as long as there is room.

    Args:
        owner_N: the owner of each row; E for a row that gets no slot.
        turn_N: priority of each row, all different; lower ones get a slot first.
        counts_E: how many rows have each owner.
        first_E, room_E: the slots of owner e are `first_E[e]` to `first_E[e] + room_E[e]`.
        owner_S: the owner of each slot.
    """
    N, S, E = len(owner_N), len(owner_S), len(counts_E)
    sorted_N = jnp.lexsort((turn_N, owner_N))
    start_E = jnp.cumsum(counts_E) - counts_E  # of each owner's rows among the sorted
    owner = jnp.minimum(owner_N, E - 1)
    rank_N = jnp.argsort(sorted_N) - start_E[owner]
    slot_N = jnp.where((owner_N < E) & (rank_N < room_E[owner]), first_E[owner] + rank_N, S)
    rank_S = jnp.arange(S) - first_E[owner_S]
    held_S = rank_S < jnp.minimum(counts_E, room_E)[owner_S]
    row_S = jnp.where(held_S, sorted_N[jnp.clip(start_E[owner_S] + rank_S, 0, N - 1)], N)
    return Places(row_S, slot_N)


@jax.custom_vjp
def move(x_ND: jax.Array, row_S: jax.Array, slot_N: jax.Array) -> jax.Array:
    """x_SD: the row in each slot, zeros in empty slots. Swapping `row_S` and `slot_N` gives the inverse.

    The gradient is that inverse: a gather as well, not a scatter-add, which is slow on GPUs.
    """
    return x_ND.at[row_S].get(mode="fill", fill_value=0)


def _move_forward(x_ND, row_S, slot_N):
    return move(x_ND, row_S, slot_N), (row_S, slot_N)


def _move_backward(places, dx_SD):
    row_S, slot_N = places
    return move(dx_SD, slot_N, row_S), None, None


move.defvjp(_move_forward, _move_backward)


@jax.custom_vjp
def grouped_matmul(x_NMD: jax.Array, kernel_EDF: jax.Array, owner_N: jax.Array, used: jax.Array) -> jax.Array:
    """`x_NMD[n] @ kernel_EDF[owner_N[n]]` for the first `used` of N blocks of M rows, zeros for the rest: y_NMF.

    Only the blocks in use cost time (Gale et al. 2022, MegaBlocks, section 4). `jax.lax.ragged_dot` is the same
    product, but except on TPUs it multiplies all rows with all kernels.
    """

    def block(n: jax.Array, y_NMF: jax.Array) -> jax.Array:
        return y_NMF.at[n].set(x_NMD[n] @ kernel_EDF[owner_N[n]])

    zeros = jnp.zeros((*x_NMD.shape[:2], kernel_EDF.shape[2]), x_NMD.dtype)
    return jax.lax.fori_loop(0, used, block, zeros)


def _grouped_forward(x_NMD, kernel_EDF, owner_N, used):
    return grouped_matmul(x_NMD, kernel_EDF, owner_N, used), (x_NMD, kernel_EDF, owner_N, used)


def _grouped_backward(inputs, dy_NMF):
    x_NMD, kernel_EDF, owner_N, used = inputs
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def block(n: jax.Array, total_EDF: jax.Array) -> jax.Array:
        return total_EDF.at[owner_N[n]].add(product(x_NMD[n].T, dy_NMF[n]))

    dkernel_EDF = jax.lax.fori_loop(0, used, block, jnp.zeros(kernel_EDF.shape, jnp.float32))
    dx_NMD = grouped_matmul(dy_NMF, jnp.swapaxes(kernel_EDF, 1, 2), owner_N, used)
    return dx_NMD, dkernel_EDF.astype(kernel_EDF.dtype), None, None


grouped_matmul.defvjp(_grouped_forward, _grouped_backward)
