"""Blocks whose queries and values have biases and whose keys have none.

A bias of the keys adds the same to all logits of a query, which no softmax sees, so some published models leave it
out. `mmjax.nn.block.Block` has biases on q, k and v or on none of them: the leaf is left out of the params, and the
block reads zeros in its place.
"""

from typing import Any

import jax.numpy as jnp


def without_key_bias(params: dict[str, Any]) -> dict[str, Any]:
    """Params of a block, or of a stack of them, without attn/k/bias."""
    attn = params["attn"]
    return {**params, "attn": {**attn, "k": {"kernel": attn["k"]["kernel"]}}}


def with_key_bias(params: dict[str, Any]) -> dict[str, Any]:
    """Params of one block with zeros as attn/k/bias."""
    attn = params["attn"]
    kernel = attn["k"]["kernel"]
    return {**params, "attn": {**attn, "k": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1:], kernel.dtype)}}}
