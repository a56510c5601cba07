"""Many equal blocks in a row: one tree of parameters with a leading layer axis, or one tree a layer.

Stacked parameters ([L, ...] leaves) run under `lax.scan`: compile time does not grow with depth, which is
what training and pods want. A tuple of L trees runs as a Python loop: no slice of the stack is copied at
each decoding step, which is about three times faster on a CPU.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mmjax.config import check_choice

REMAT: dict[str, Any] = {
    "none": None,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check_remat(name: str) -> None:
    """Raises ConfigError unless `name` is a rematerialisation policy."""
    check_choice("remat", name, tuple(REMAT))


def init_stack(block: nn.Module, num_layers: int, *args) -> Callable[[jax.Array], Any]:
    """An initialiser of `num_layers` stacked copies of an unbound `block` called with `args`.

    Every leaf gets a leading axis, whose logical name is "layers".
    """

    def init(rng: jax.Array) -> Any:
        one = lambda key: block.init(key, *args)["params"]
        boxed = jax.vmap(one)(jax.random.split(rng, num_layers))
        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        return jax.tree.map(lambda box: box.replace(names=("layers", *box.names)), boxed, is_leaf=is_box)

    return init


def depth(blocks: Any) -> int:
    """Number of layers of a stack in either form."""
    return len(blocks) if isinstance(blocks, tuple) else jax.tree.leaves(blocks)[0].shape[0]


def run_stack(
    apply: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    blocks: Any,
    x: jax.Array,
    cache: Any = None,
    remat: str = "none",
    start: int = 0,
    stop: int | None = None,
) -> tuple[jax.Array, Any]:
    """Runs layers `start` to `stop` of a stack.

    Args:
        apply: (one layer's params, x, that layer's cache) -> (x, cache).
        blocks: stacked leaves [L, ...], or a tuple of L trees.
        x: what flows through, [B, T, D].
        cache: None; for a tuple of blocks a tuple of L caches; for stacked blocks one tree with [L, ...] leaves.
        remat: "none", "full" (recompute each block in the backward pass), or "dots" (keep matrix products).

    Returns:
        x, and the cache in the form it came in (of the layers that ran).
    """
    check_remat(remat)
    layers = depth(blocks)
    stop = layers if stop is None else stop
    if remat != "none":
        apply = jax.checkpoint(apply, policy=REMAT[remat], prevent_cse=isinstance(blocks, tuple))
    if isinstance(blocks, tuple):
        caches = []
        for layer in range(start, stop):
            x, new = apply(blocks[layer], x, None if cache is None else cache[layer])
            caches.append(new)
        return x, None if cache is None else tuple(caches)
    if (start, stop) != (0, layers):
        blocks, cache = jax.tree.map(lambda leaf: leaf[start:stop], (blocks, cache))
    return jax.lax.scan(lambda carry, layer: apply(layer[0], carry, layer[1]), x, (blocks, cache))


def side_by_side(**stacks: Any) -> Any:
    """Several stacks of one depth as one, whose layers are dicts with a layer of each; its form is that of the first.

    A stack is here also what is no parameters but goes layer by layer: a tuple of L things, or leaves [L, ...].
    """
    if isinstance(next(iter(stacks.values())), tuple):
        return tuple(dict(zip(stacks, layer, strict=True)) for layer in zip(*stacks.values(), strict=True))
    return stacks


def run_groups(
    before: Callable[[Any, jax.Array], jax.Array],
    others: Any,
    apply: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    blocks: Any,
    x: jax.Array,
    cache: Any = None,
    remat: str = "none",
) -> tuple[jax.Array, Any]:
    """Runs a stack of L layers in G equal groups, with a layer of another stack before each.

    Args:
        before: (params of one layer of `others`, x) -> x.
        others: a stack of G layers, in the form of `blocks`.
        apply, blocks, x, cache, remat: as `run_stack`.

    Returns:
        x, and the cache in the form it came in.
    """
    groups = depth(others)
    each = depth(blocks) // groups
    check_remat(remat)
    if remat != "none":
        before = jax.checkpoint(before, policy=REMAT[remat], prevent_cse=isinstance(blocks, tuple))
    if isinstance(blocks, tuple):
        caches = []
        for group, other in enumerate(others):
            part = slice(group * each, (group + 1) * each)
            own = None if cache is None else cache[part]
            x, new = run_stack(apply, blocks[part], before(other, x), own, remat)
            caches += new or ()
        return x, None if cache is None else tuple(caches)

    def run(x, group):
        other, own, own_cache = group
        return run_stack(apply, own, before(other, x), own_cache, remat)

    folded = jax.tree.map(lambda leaf: leaf.reshape(groups, each, *leaf.shape[1:]), (blocks, cache))
    x, cache = jax.lax.scan(run, x, (others, *folded))
    return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), cache)
