"""FLOPs that a step really executes, recomputation included: counted in its traced program, before any compiler."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def executed_flops(traced: Any) -> float:
    """2 for each multiplication of the matrix products of a closed jaxpr, on all devices together.

    Loops count by their length (one of unknown length once), a branch as its dearest side, the body of a `shard_map`
    on each of its devices, that of a Pallas kernel in each cell of its grid: those that a causal mask lets it skip too,
    as in `model.config.flops_per_sequence`.
    """
    return _of(traced.jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "ragged_dot_general":  # each row meets the matrix of its group
        return 2.0 * math.prod(equation.invars[0].aval.shape) * equation.outvars[0].aval.shape[-1]
    inner = [_of(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return _times(name, params) * sum(inner)


def _times(name: str, params: Any) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].static_grid)
    return 1
