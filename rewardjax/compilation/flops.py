"""How many operations a program's matrix products take, counted from its jaxpr."""

import math
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function, *arguments: Any, platform: str = "tpu") -> float:
    """Multiplications and additions of all matrix products, loops counted as often as they run.

    Compilers' own counts see a loop's body once and nothing of a kernel's inside. A branch counts as
    its dearest side, a loop of unknown length as one turn, a Pallas kernel as if it ran at every point
    of its grid: a block that it skips, since a mask hides all of it, counts.

    Args:
      function: what is traced.
      *arguments: arrays or `jax.ShapeDtypeStruct`.
      platform: of branches by platform (`jax.lax.platform_dependent`), the one that counts.

    Returns:
      The sum over all devices.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def _count(jaxpr: core.Jaxpr, platform: str) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "cond":
            branches = _for_platform(params, platform)
            total += max(_count(branch.jaxpr, platform) for branch in branches)
        else:
            inside = sum(_count(inner, platform) for inner in _inner(params))
            total += _turns(name, params) * inside
    return total


def _for_platform(params: dict[str, Any], platform: str) -> list[core.ClosedJaxpr]:
    """The branches that a program lowered for the platform may take."""
    chosen = params.get("branches_platforms")
    if chosen is None:
        return list(params["branches"])
    named = zip(params["branches"], chosen, strict=True)
    return [branch for branch, names in named if names is None or platform in names][:1]


def _turns(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name != "shard_map":
        return 1
    # What is written for one device runs on each of those that it maps over.
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left: Any = equation.invars[0].aval
    result: Any = equation.outvars[0].aval
    return 2.0 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, core.ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, core.Jaxpr):
                found.append(each)
    return found
