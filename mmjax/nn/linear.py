"""A linear map over any number of trailing axes, with an optional low-rank (LoRA) path beside it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.lora import LoRAConfig


def fan_in_normal(shape_in: tuple[int, ...]) -> jax.nn.initializers.Initializer:
    """Normal initialiser with standard deviation 1 / sqrt(number of inputs)."""
    return nn.initializers.normal(1.0 / math.sqrt(math.prod(shape_in)))


class Linear(nn.Module):
    """y = x @ kernel + bias, contracting the last `in_dims` axes of x.

    The kernel has shape [*in, *features], the bias [*features]. With `lora`, `lora_a` [*in, rank] and
    `lora_b` [rank, *features] add `(alpha / rank) * x @ a @ b` (Hu et al., 2021); b starts at zero.

    Attributes:
        features: output axes, e.g. (heads, head width).
        axes: logical axis names of the kernel, inputs first.
        in_dims: how many trailing axes of x are contracted.
        use_bias: whether a bias is added.
        lora: rank and alpha, or None for no low-rank path.
        dtype: dtype of the computation; parameters are cast to it.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    in_dims: int = 1
    use_bias: bool = False
    lora: LoRAConfig | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *in] -> [..., *features] in `dtype`."""
        shape_in = x.shape[x.ndim - self.in_dims :]
        axes_in, axes_out = self.axes[: self.in_dims], self.axes[self.in_dims :]
        contract = (tuple(range(x.ndim - self.in_dims, x.ndim)), tuple(range(self.in_dims)))

        def weight(name, init, shape, axes):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape).astype(self.dtype)

        x = x.astype(self.dtype)
        kernel = weight("kernel", fan_in_normal(shape_in), (*shape_in, *self.features), self.axes)
        y = jax.lax.dot_general(x, kernel, (contract, ((), ())))
        if self.lora is not None:
            rank = self.lora.rank
            a = weight("lora_a", fan_in_normal(shape_in), (*shape_in, rank), (*axes_in, "rank"))
            b = weight("lora_b", nn.initializers.zeros, (rank, *self.features), ("rank", *axes_out))
            # Scaled where it is narrow, so that neither pass multiplies a whole activation by a constant.
            low = jax.lax.dot_general(x, a, (contract, ((), ()))) * (self.lora.alpha / rank)
            y = y + jax.lax.dot_general(low, b, (((low.ndim - 1,), (0,)), ((), ())))
        if self.use_bias:
            y = y + weight("bias", nn.initializers.zeros, self.features, axes_out)
        return y
