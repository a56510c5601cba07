"""A linear map over any number of trailing axes, with an optional low-rank (LoRA) path beside it."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.lora import LoRAConfig


def fan_in_normal(shape_in: tuple[int, ...]) -> jax.nn.initializers.Initializer:
    """Normal initialiser with standard deviation 1 / sqrt(number of inputs)."""
    return nn.initializers.normal(1.0 / math.sqrt(math.prod(shape_in)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contract(
    x: jax.Array, kernel: jax.Array, in_dims: int = 1, transposed: bool = False, dtype: Any = None
) -> jax.Array:
    """x [..., *in] . kernel [*in, *out] -> [..., *out], or with `transposed` . kernel [*out, *in].

    `dtype` is that of the result, x's unless given; gradients are products in x's dtype.

    The backward pass is written out because the automatic one asks for the kernel's gradient the other way round
    and turns it afterwards; XLA's CPU compiler then turns whole activations instead, which costs more than
    the product itself where one side is narrow (LoRA). Reverse mode only.
    """
    return _dot(x, kernel, *_inner(x, kernel, in_dims, transposed), dtype)


def _dot(x, y, x_axes, y_axes, dtype=None):
    dims = (tuple(x_axes), tuple(y_axes)), ((), ())
    return jax.lax.dot_general(x, y, dims, preferred_element_type=dtype)


def _inner(x, kernel, in_dims, transposed):
    out_dims = kernel.ndim - in_dims
    first = out_dims if transposed else 0
    return range(x.ndim - in_dims, x.ndim), range(first, first + in_dims)


def _contract_forward(x, kernel, in_dims, transposed, dtype):
    return contract(x, kernel, in_dims, transposed, dtype), (x, kernel)


def _contract_backward(in_dims, transposed, dtype, saved, dy):
    x, kernel = saved
    dy = dy.astype(x.dtype)
    rows, out_dims = range(x.ndim - in_dims), kernel.ndim - in_dims
    first = 0 if transposed else in_dims
    dx = _dot(dy, kernel, range(len(rows), dy.ndim), range(first, first + out_dims))
    return dx, _dot(dy, x, rows, rows) if transposed else _dot(x, dy, rows, rows)


contract.defvjp(_contract_forward, _contract_backward)


class Linear(nn.Module):
    """y = x @ kernel + bias, contracting the last `in_dims` axes of x.

    The kernel has shape [*in, *features], the bias [*features]. With `lora`, `lora_a` [*in, rank] and
    `lora_b` [rank, *features] add `(alpha / rank) * x @ a @ b` (Hu et al., 2021); b starts at zero. Where leaves
    `tuned_bias` and `tuned_scale` [*features] are laid beside the kernel, y is scale * (y + bias) (Gao et al., 2023).

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

        def weight(name, init, shape, axes):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape).astype(self.dtype)

        x = x.astype(self.dtype)
        kernel = weight("kernel", fan_in_normal(shape_in), (*shape_in, *self.features), self.axes)
        y = contract(x, kernel, self.in_dims)
        if self.lora is not None:
            rank = self.lora.rank
            a = weight("lora_a", fan_in_normal(shape_in), (*shape_in, rank), (*axes_in, "rank"))
            b = weight("lora_b", nn.initializers.zeros, (rank, *self.features), ("rank", *axes_out))
            # Scaled where it is narrow, so that neither pass multiplies a whole activation by a constant.
            low = contract(x, a, self.in_dims) * (self.lora.alpha / rank)
            y = y + contract(low, b, 1)
        if self.use_bias:
            y = y + weight("bias", nn.initializers.zeros, self.features, axes_out)
        if self.has_variable("params", "tuned_scale"):
            bias, scale = (self.get_variable("params", name) for name in ("tuned_bias", "tuned_scale"))
            y = scale.astype(self.dtype) * (y + bias.astype(self.dtype))
        return y
