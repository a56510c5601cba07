"""The device mesh: how many devices each mesh axis has, what fits on it, and how a host batch gets there."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.config import ConfigError
from mmjax.distributed.rules import MESH_AXES, is_axes, mesh_axes, spec

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, which takes the devices that the others leave.

    data: copies of the model, each with its own part of the batch. fsdp: parts of the batch too, with the
    weights split. tensor: heads, feed-forward and vocabulary. context: the sequence. expert: the experts.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `MESH_AXES` (those of size 1 included), ordered after the devices' topology.

    Several TPU slices (devices with different `slice_index`) are laid along `data`, so that only gradients
    cross the slow network between them. A mesh smaller than the machine takes the first devices; with several
    processes it must take all of them, since every process needs a device in it.

    Raises:
        ConfigError: the axes do not fit the devices; the message says how many there are and what would fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config, len(devices))
    used = math.prod(sizes.values())
    processes = {device.process_index for device in devices}
    if used < len(devices):
        if len(processes) > 1:
            raise ConfigError(
                f"mesh {_show(sizes)} takes {used} of {len(devices)} devices; with {len(processes)} "
                f"processes it must take all of them. {_fitting(sizes, len(devices))}"
            )
        logger.warning("the mesh uses %d of %d devices; data=-1 would use all", used, len(devices))
        devices = devices[:used]
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        grid = _multi_slice_grid(sizes, devices, len(slices))
        return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def check_fits(shapes_tree: Any, axes_tree: Any, mesh: Mesh) -> None:
    """Checks that the mesh divides every dimension of every array; nothing is ever replicated instead.

    This holds for batch dimensions as for weights: a batch of 6 on 8 data shards is an error, not padding.

    Args:
        shapes_tree: arrays or `jax.ShapeDtypeStruct`s.
        axes_tree: the same tree with tuples of logical axes as leaves.
        mesh: any mesh with the axes that the rules use.

    Raises:
        ConfigError: one message that lists every dimension that does not fit: its leaf's path, its size, the
            mesh axes that split it, and the sizes that would fit.
        ValueError: the two trees differ, a leaf has another number of axes than dimensions, unknown axis.
    """
    shapes = _by_path(jax.tree_util.tree_leaves_with_path(shapes_tree))
    axes = _by_path(jax.tree_util.tree_leaves_with_path(axes_tree, is_leaf=is_axes))
    if shapes.keys() != axes.keys():
        without = sorted(shapes.keys() - axes.keys())
        beyond = sorted(axes.keys() - shapes.keys())
        raise ValueError(f"arrays without logical axes: {without}; logical axes without an array: {beyond}")
    problems = []
    for path, names in axes.items():
        shape = tuple(shapes[path].shape)
        if not is_axes(names) or len(names) != len(shape):
            raise ValueError(f"{path}: {names!r} does not name the {len(shape)} dimensions of shape {shape}")
        spec(names)  # unknown axes and collisions
        for dimension, (size, axis) in enumerate(zip(shape, names, strict=True)):
            over = {name: mesh.shape[name] for name in mesh_axes(axis)}
            parts = math.prod(over.values())
            if size % parts:
                fitting = " or ".join(map(str, _divisors(math.gcd(size, mesh.size))))
                problems.append(
                    f"  {path}: dimension {dimension} ({axis}) is {size}, not a multiple of {_show(over)}; "
                    f"it fits a split in {fitting}, or make it {-(-size // parts) * parts}"
                )
    if problems:
        count = f"{len(problems)} dimension{'s do' if len(problems) > 1 else ' does'} not fit"
        raise ConfigError("\n".join([f"{count} mesh {_show(dict(mesh.shape))}:", *problems]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch array [B, ...]: B over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, spec(("batch",)))


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process must load share `index` of `count` equal shares of the global batch.

    Processes that hold the same rows (a `tensor` axis that spans processes) get the same index and must load
    the same samples.

    Raises:
        ConfigError: the rows of two processes overlap in part; no share of one process exists then.
    """
    count = math.prod(mesh.shape[name] for name in mesh_axes("batch"))
    rows: dict[int, set[int]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((count,)).items():
        rows.setdefault(device.process_index, set()).update(range(*index[0].indices(count)))
    groups = sorted({tuple(sorted(group)) for group in rows.values()})
    if sum(map(len, groups)) != count:
        raise ConfigError(f"mesh {_show(dict(mesh.shape))}: processes share batch rows in part: {rows}")
    mine = rows.get(jax.process_index())
    if mine is None:
        raise ConfigError(f"process {jax.process_index()} has no device in mesh {_show(dict(mesh.shape))}")
    return groups.index(tuple(sorted(mine))), len(groups)


def put_batch(batch_tree: Any, mesh: Mesh) -> Any:
    """Host arrays to global arrays, rows split by `batch_sharding`.

    Args:
        batch_tree: a tree of numpy arrays [B, ...]; with several processes each gives its own share of the
            rows (`batch_share`), B being the share's size. Arrays without dimensions are copied everywhere.
            jax arrays that span processes already are left alone.

    Raises:
        ConfigError: rows that the batch shards do not divide; lists every leaf.
    """
    sharding = batch_sharding(mesh)
    shards = math.prod(mesh.shape[name] for name in mesh_axes("batch"))
    shares = batch_share(mesh)[1] if jax.process_count() > 1 else 1
    bad = [
        f"{path} {tuple(np.shape(leaf))}"
        for path, leaf in _by_path(jax.tree_util.tree_leaves_with_path(batch_tree)).items()
        if np.ndim(leaf) and not _spans_processes(leaf) and np.shape(leaf)[0] * shares % shards
    ]
    if bad:
        per_process = f" from each of {shares} processes" if shares > 1 else ""
        raise ConfigError(
            f"batch rows{per_process} must be a multiple of {shards // math.gcd(shards, shares)} on mesh "
            f"{_show(dict(mesh.shape))}: {', '.join(bad)}"
        )

    def put(leaf: Any) -> jax.Array:
        if _spans_processes(leaf):
            return leaf
        where = sharding if np.ndim(leaf) else NamedSharding(mesh, PartitionSpec())
        if jax.process_count() == 1:
            return jax.device_put(leaf, where)
        return jax.make_array_from_process_local_data(where, np.asarray(leaf))

    return jax.tree_util.tree_map(put, batch_tree)


def _sizes(config: MeshConfig, count: int) -> dict[str, int]:
    sizes = dataclasses.asdict(config)
    wrong = {name: size for name, size in sizes.items() if size != -1 and size < 1}
    if wrong or sum(size == -1 for size in sizes.values()) > 1:
        raise ConfigError(f"mesh {_show(sizes)}: axes must be 1 or more; one of them may be -1 (the rest)")
    used = math.prod(size for size in sizes.values() if size != -1)
    if count % used:
        raise ConfigError(
            f"mesh {_show(sizes)} needs {'a multiple of ' if -1 in sizes.values() else ''}{used} devices "
            f"and there are {count}. {_fitting(sizes, count)}"
        )
    return {name: count // used if size == -1 else size for name, size in sizes.items()}


def _fitting(sizes: dict[str, int], count: int) -> str:
    """Which single axis could be changed to make the mesh take all devices."""
    single = []
    for name in sizes:
        others = math.prod(size for other, size in sizes.items() if other != name and size != -1)
        if count % others == 0:
            single.append(f"{name}={count // others}")
    if -1 not in sizes.values() and single:
        return f"With the other axes as they are, {' or '.join(single)} would fit."
    divisors = ", ".join(map(str, _divisors(count)))
    return f"The axis sizes must multiply to {count}; sizes that can be part of it: {divisors}."


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def _multi_slice_grid(sizes: dict[str, int], devices: list[jax.Device], slices: int) -> np.ndarray:
    from jax.experimental import mesh_utils

    if sizes["data"] % slices:
        raise ConfigError(
            f"mesh {_show(sizes)}: the devices are {slices} slices, which lie along data: make data a "
            f"multiple of {slices}"
        )
    inside = {**sizes, "data": sizes["data"] // slices}
    across = [slices if name == "data" else 1 for name in sizes]
    return mesh_utils.create_hybrid_device_mesh(tuple(inside.values()), tuple(across), devices)


def _by_path(leaves: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _spans_processes(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _show(sizes: dict[str, int]) -> str:
    return " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "of one device"
