"""A generator as a model of its own: pure functions over plain nested dicts of params."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PartModel:
    """What all have in common; each has `module`, whose `create` is called with zeros of the config's `feature_shape`.

    Attributes:
        config: of the generator.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy of what is stacked.
    """

    config: Any
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    # The flax module; a property of each kind.
    module: ClassVar[Any]

    def _boxed(self, rng: jax.Array) -> Any:
        return self.module.init(rng, jnp.zeros((1, *self.config.feature_shape)), method="create")["params"]

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh params in `param_dtype`, blocks stacked."""
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), nn.unbox(self._boxed(rng)))

    def param_shapes(self) -> dict[str, Any]:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> dict[str, Any]:
        """The tree of tuples of logical axis names of every leaf."""
        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))
        return jax.tree.map(lambda box: box.names, boxed, is_leaf=is_box)

    def _apply(self, params: dict[str, Any], *args: Any, **options: Any) -> Any:
        return self.module.apply({"params": params}, *args, **options)
