"""Low-rank adapters (arXiv:2106.09685): a frozen model, and small matrices that change it.

    W + (alpha / rank) A B        A [in, rank] starts random, B [rank, out] at 0

One set of weights is both the reference (without the adapter) and the policy (with it):

    lora = Lora(model.boxed_init, LoraConfig(rank=16))
    program = PolicyGradient(config, init=lora.boxed_init, assemble=lora.merge, ...)
    adapter = program.run(run, frozen=weights).params
    export_checkpoint(folder, model.config, lora.merge(adapter, weights))
"""

import dataclasses
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

DENSE = r"attention/(query|key|value|out)$|mlp/(gate|up|down)$"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices are adapted, and by how much.

    Attributes:
      rank: of the change, at least 1.
      alpha: the change is multiplied by `alpha / rank`.
      targets: a regular expression that is searched in each matrix's path
        ("groups/block_0/attention/query"); all projections of the blocks by default.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = DENSE

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoraConfig.rank: expected at least 1, found {self.rank}")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters of one model, as pure functions.

    An adapter is a flat dictionary: of each adapted matrix's path, `{"a": A, "b": B}` in float32, with a
    leading axis where layers are scanned.

    Attributes:
      model_init: the model's `boxed_init`, for names and shapes.
      config: rank and targets.

    Raises:
      ValueError: on use, if the targets match no matrix.
    """

    model_init: Callable[[PRNGKeyArray], Any]
    config: LoraConfig = LoraConfig()

    @cached_property
    def adapted(self) -> dict[str, nn.LogicallyPartitioned]:
        """The matrices that are adapted, as shapes with logical axis names, by path."""
        boxed = jax.eval_shape(self.model_init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box)
        matrices = {_name(path): box for path, box in leaves if _is_matrix(box)}
        found = {
            name: box for name, box in matrices.items() if re.search(self.config.targets, name)
        }
        if not found:
            raise ValueError(
                f"LoraConfig.targets: expected to match some of {', '.join(matrices)},"
                f" found no match for {self.config.targets!r}"
            )
        return found

    def boxed_init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """A fresh adapter, which changes nothing yet, with its logical axis names."""
        rank, adapter = self.config.rank, {}
        for i, (name, box) in enumerate(self.adapted.items()):
            *stack, rows, columns = box.value.shape
            *stacked, into, out = box.names
            draw = jax.random.normal(jax.random.fold_in(key, i), (*stack, rows, rank))
            a, b = draw * rows**-0.5, jnp.zeros((*stack, rank, columns))
            adapter[name] = {
                "a": nn.LogicallyPartitioned(a, (*stacked, into, None)),
                "b": nn.LogicallyPartitioned(b, (*stacked, None, out)),
            }
        return adapter

    def init(self, key: PRNGKeyArray) -> dict[str, Any]:
        """A fresh adapter: arrays."""
        return nn.meta.unbox(self.boxed_init(key))

    def merge(self, adapter: dict[str, Any], params: Any) -> Any:
        """The model's parameters with the adapter's change; gradients reach the adapter alone.

        Args:
          adapter: see above.
          params: of the model, in any precision; the sum is rounded to it.
        """
        scale = self.config.alpha / self.config.rank

        def change(path, weight):
            weight = jax.lax.stop_gradient(weight)
            if (own := adapter.get(_name(path))) is None:
                return weight
            moved = scale * (own["a"] @ own["b"])
            return (weight.astype(jnp.float32) + moved).astype(weight.dtype)

        return jax.tree_util.tree_map_with_path(change, params)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _is_matrix(box: Any) -> bool:
    names = [name for name in getattr(box, "names", ()) if name != "layers"]
    return len(names) == 2


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
