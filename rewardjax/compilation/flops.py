"""How many operations a program's matrix products take, counted from its jaxpr."""

import math
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function, *arguments: Any) -> float:
    """Multiplications and additions of all matrix products, loops counted as often as they run.

    Compilers' own counts see a loop's body once and nothing of a kernel's inside. A branch counts as
    its dearest side, a loop of unknown length as one turn.

    Args:
      function: what is traced.
      *arguments: arrays or `jax.ShapeDtypeStruct`.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            turns = equation.params["length"] if name == "scan" else 1
            total += turns * sum(_count(inner) for inner in _inner(equation.params))
    return total


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
