"""Trees of parameters as flat mappings: a leaf is named by its path, "backbone/blocks/attn/q/kernel".

Freezing, adapters, weights of other frameworks, checkpoints: all of them work on paths.
"""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, path -> leaf, sorted. Anything that is no mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        path, value = f"{prefix}{key}", tree[key]
        flat.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts of one or several flat mappings.

    Raises:
        ValueError: a path stands in two of the parts.
    """
    tree: dict[str, Any] = {}
    for part in parts:
        for path, leaf in part.items():
            *parents, last = path.split("/")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            if last in node:
                raise ValueError(f"{path} stands in two of the parts that are put together")
            node[last] = leaf
    return tree
