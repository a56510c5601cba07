"""What decoding keeps: the key/value cache, and the parameters as one tree a layer."""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.backbones import BackboneConfig


def empty_cache(
    config: BackboneConfig, batch: int, length: int, dtype: Any = jnp.float32, stacked: bool = False
) -> Any:
    """A cache of zeros: a tuple over L layers of (k, v), each [B, K, S, C] with S = `length`.

    It takes 2 L B K S C numbers: at B 8, S 1024 and 32 layers of 8 heads of 128 in bfloat16, 1 GiB.
    `stacked` gives one (k, v) with leaves [L, B, K, S, C] instead, which is what stacked blocks are scanned
    with. An encoder-decoder's is that of its decoder's own tokens.
    """
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    if stacked:
        shape = (config.num_layers, *shape)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))


def is_unstacked(params: dict) -> bool:
    """Whether the backbone's blocks (an encoder-decoder's decoder's) are a tuple of one tree a layer."""
    backbone = params["backbone"]
    return isinstance(backbone.get("decoder", backbone)["blocks"], tuple)


def unstack(params: dict) -> dict:
    """The view of `params` that decoding reads: every stacked `blocks` as a tuple of L trees, one a layer.

    Each layer's weights become arrays of their own, so a decoding step reads them where they lie; scanning
    the stack copies each layer's slice first, which costs about three times the time on a CPU. The price is
    memory: the blocks (nearly all of a model) are held a second time for as long as both trees are alive.
    Drop the stacked tree to have it back, or decode from the stacked tree (`Programs(model,
    unstack=False)`) and never pay it. What is not in blocks is shared, not copied. A tree that is unstacked
    already comes back as it is; the sharding of what is left of each leaf stays (a layer axis that was
    sharded is gathered).
    """
    if not isinstance(params, dict):
        return params
    return {
        name: _layers(child) if name == "blocks" and _is_stack(child) else unstack(child)
        for name, child in params.items()
    }


def _is_stack(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return (
        isinstance(tree, dict)
        and bool(leaves)
        and all(leaf.ndim > 0 for leaf in leaves)
        and len({leaf.shape[0] for leaf in leaves}) == 1
    )


def _layers(stack: dict) -> tuple[dict, ...]:
    leaves, structure = jax.tree.flatten(stack)
    split = [[leaf[i] for i in range(leaf.shape[0])] for leaf in leaves]
    return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*split, strict=True))
