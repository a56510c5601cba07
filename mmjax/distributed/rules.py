"""The one table that says on which mesh axis each logical axis of an array lies.

A parameter or an activation names its dimensions ("embed", "heads", ...); where they live is decided here
and nowhere else. Axes of parameters and of activations differ where they must: a weight's width is split
over `fsdp` (gathered when used), while an activation already spends `fsdp` on its batch, so its width is
`act_embed`.
"""

import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.config import nearest

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Parameters.
    "layers": None,  # stacked blocks, scanned
    "embed": "fsdp",  # model width D of a weight
    "heads": "tensor",  # query heads H
    "kv_heads": "tensor",  # key/value heads K
    "head_dim": None,  # head width C
    "mlp": "tensor",  # feed-forward width F
    "vocab": "tensor",  # vocabulary V
    "expert": "expert",  # experts E
    "patch": None,  # kernel and position dimensions of a patch embedding
    "feature": None,  # any other width: small, kept whole
    "rank": None,  # LoRA rank
    # Activations.
    "batch": ("data", "fsdp"),  # B
    "length": "context",  # T
    "act_embed": None,  # D
    "act_heads": "tensor",  # H
    "act_kv_heads": "tensor",  # K
    "act_mlp": "tensor",  # F
    "act_vocab": "tensor",  # V
}


def is_axes(node: Any) -> bool:
    """True for a leaf of an axes tree: a tuple (also empty, for a scalar) of logical axis names or None."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that split a logical axis, () when it is kept whole.

    Raises:
        ValueError: the table has no such logical axis; the message names the nearest.
    """
    if axis is None:
        return ()
    if axis not in RULES:
        known = ", ".join(RULES)
        raise ValueError(f"unknown logical axis {axis!r}.{nearest(axis, RULES)} Known axes: {known}")
    rule = RULES[axis]
    return () if rule is None else (rule,) if isinstance(rule, str) else rule


@functools.cache
def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical axes, one entry for each dimension.

    Raises:
        ValueError: an axis without a rule, or two dimensions that would share one mesh axis.
    """
    owner: dict[str, str | None] = {}
    entries: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        names = mesh_axes(axis)
        for name in names:
            if name in owner:
                raise ValueError(
                    f"axes {axes}: {owner[name]!r} and {axis!r} both lie on mesh axis {name!r}; "
                    "an array can use a mesh axis once, so give one of them another axis or None"
                )
            owner[name] = axis
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def shardings(axes_tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding on `mesh` for a tree whose leaves are tuples of logical axes.

    Raises:
        ValueError: a leaf that is no tuple of names, an unknown axis, a collision, or a mesh without an axis
            that a rule uses; the message holds the leaf's path.
    """
    present = frozenset(mesh.axis_names)

    def place(path: tuple[Any, ...], axes: Any) -> NamedSharding:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not is_axes(axes):
            raise ValueError(f"{where}: expected a tuple of logical axes, got {axes!r}")
        try:
            return NamedSharding(mesh, _on_mesh(spec(axes), present))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    return jax.tree_util.tree_map_with_path(place, axes_tree, is_leaf=is_axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays `x` out by logical axes on the mesh set with `jax.set_mesh`; the values do not change.

    Without a mesh, or on one device, `x` is returned as it is, but the names are checked all the same. Mesh
    axes that an enclosing `jax.shard_map` handles by hand are left out, as the array is local along them.

    Args:
        x: any array or tracer.
        *axes: one logical axis or None for each dimension of `x`.

    Raises:
        ValueError: the count of axes is not x.ndim, an unknown axis, or a collision.
    """
    if len(axes) != x.ndim:
        raise ValueError(f"{len(axes)} axes {axes} for {x.ndim} dimensions, shape {tuple(x.shape)}")
    layout = spec(axes)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    manual = {name for name, kind in kinds.items() if kind is AxisType.Manual}
    if len(manual) == len(kinds):
        return x
    layout = _on_mesh(layout, frozenset(kinds))
    if manual:
        layout = PartitionSpec(*(_without(entry, manual) for entry in layout))
    return jax.lax.with_sharding_constraint(x, layout)


def _on_mesh(layout: PartitionSpec, present: frozenset[str]) -> PartitionSpec:
    for entry in layout:
        for name in (entry,) if isinstance(entry, str) else entry or ():
            if name not in present:
                raise ValueError(
                    f"the mesh has axes {sorted(present)} but a rule needs {name!r}; "
                    "mmjax.distributed.mesh.make_mesh gives every mesh axis, those of size 1 included"
                )
    return layout


def _without(entry: str | tuple[str, ...] | None, gone: set[str]) -> tuple[str, ...] | None:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(name for name in names if name not in gone) or None
