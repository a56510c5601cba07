"""A codebook: vectors to the numbers of their nearest codes, and back (van den Oord et al., 2017, "VQ-VAE")."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# How much the codes are drawn to the vectors, against 1 for the vectors to the codes. The paper has it the other way
# round; the autoencoders that are published were trained like this.
CODES_WEIGHT = 0.25


class Quantised(NamedTuple):
    """What a codebook makes of vectors [..., C].

    Attributes:
        values: [..., C], the codes; gradients pass as if they were the vectors (straight through).
        codes: int32 [...], their numbers.
        loss: float32 scalar, how far vectors and codes are apart; it moves both.
    """

    values: jax.Array
    codes: jax.Array
    loss: jax.Array


class VectorQuantizer(nn.Module):
    """Parameter codebook [codes, width].

    Attributes:
        codes, width: of the codebook.
        dtype: of the values; distances are in float32.
    """

    codes: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        init = nn.with_logical_partitioning(init, ("feature", "feature"))
        self.codebook = self.param("codebook", init, (self.codes, self.width))

    def __call__(self, vectors: jax.Array) -> Quantised:
        """[..., width] -> codes, values, loss; the first of codes that are equally near.

        Raises:
            ValueError: vectors of another width.
        """
        if vectors.shape[-1] != self.width:
            raise ValueError(f"vectors are {tuple(vectors.shape)}; wanted [..., {self.width}]")
        book = jnp.asarray(self.codebook, jnp.float32)
        vectors = vectors.astype(jnp.float32)
        # |vector|^2 is the same for all codes and left out. TPUs would round the factors to bfloat16.
        product = jnp.einsum("...c,kc->...k", vectors, book, precision="highest")
        numbers = jnp.argmin(jnp.sum(jnp.square(book), axis=-1) - 2 * product, axis=-1).astype(jnp.int32)
        nearest = book[numbers]
        still = jax.lax.stop_gradient
        loss = jnp.mean(jnp.square(still(nearest) - vectors))
        loss = loss + CODES_WEIGHT * jnp.mean(jnp.square(nearest - still(vectors)))
        values = vectors + still(nearest - vectors)
        return Quantised(values.astype(self.dtype), numbers, loss)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """int32 [...] -> [..., width]."""
        return jnp.asarray(self.codebook, self.dtype)[codes]


def unit_length(values: jax.Array) -> jax.Array:
    """[..., C] brought to length 1 over C; zeros stay zeros."""
    wide = values.astype(jnp.float32)
    # Inside the root, so that zeros have a gradient.
    squares = jnp.maximum(jnp.sum(jnp.square(wide), axis=-1, keepdims=True), 1e-24)
    return (wide * jax.lax.rsqrt(squares)).astype(values.dtype)
