"""What decoding keeps: the key/value cache, what else a generation is, and the parameters as one tree a layer."""

from dataclasses import dataclass
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A generation under way; S = T + N, the prompt's slots and those for new tokens.

    Attributes:
        tokens: int32 [B, N], pad_id where nothing is written.
        lengths: int32 [B], tokens generated, the stop token included.
        done: bool [B], rows that have had their stop token.
        step: int32 scalar, how many columns of `tokens` are written.
        cache: keys and values, see `empty_cache`.
        keys: [B], each row's random key.
        prompt_valid: bool [B, T], where the prompt is no padding.
        next_position: int32 [B], the position of the first new token.
        memory: an encoder-decoder's cross keys and the bool [B, Q] that says which places of the query are no
            padding; or those of media that are read inside the decoder, and which of their tokens new tokens see
            (what the last of the prompt sees); else None.
        seen: bool [B, V], tokens that have occurred, or None without a repetition penalty.
        place: int32 [B], where each row is in an image that it writes, see `mmjax.infer.constrained`, or None.
    """

    tokens: jax.Array
    lengths: jax.Array
    done: jax.Array
    step: jax.Array
    cache: Any
    keys: jax.Array
    prompt_valid: jax.Array
    next_position: jax.Array
    seen: jax.Array | None
    memory: Any = None
    place: jax.Array | None = None
