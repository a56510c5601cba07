"""A pipeline on several devices: weights split by the rules of the axes they were made with, prompts by rows."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.distributed.mesh import check_fits, put_batch
from mmjax.distributed.rules import shardings
from mmjax.interop import diffusers, huggingface


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Arrays that are made within lie in the host's memory, if jax has its CPUs: no device need hold all weights."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with contextlib.nullcontext() if host is None else jax.default_device(host):
        yield


def placed(config: Any, params: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The weights of one part on their shards.

    Args:
        config: of a component of diffusers, or of a tower or vocoder of transformers.
        params: its weights.
        mesh: any mesh with the axes that the rules use.

    Raises:
        ConfigError: widths that the mesh does not divide, all of them.
    """
    if type(config) in diffusers.MODULES:
        axes = diffusers.param_axes(config)
    else:
        axes = huggingface.model_of(config).param_axes()
    check_fits(params, axes, mesh)
    return jax.tree.map(jax.device_put, params, shardings(axes, mesh))


def on_mesh(model: Any, mesh: Mesh) -> Any:
    """A pipeline with its weights on a mesh; a call then takes a multiple of as many prompts as rows are split into.

    Raises:
        ConfigError: see `placed`.
    """
    if hasattr(model, "controls"):
        nets = (dataclasses.replace(net, params=placed(net.config, net.params, mesh)) for net in model.controls)
        model = dataclasses.replace(model, controls=tuple(nets))
    parts = getattr(model, "parts", model)
    params = {name: placed(getattr(parts, name), weights, mesh) for name, weights in parts.params.items()}
    parts = dataclasses.replace(parts, params=params, mesh=mesh)
    return dataclasses.replace(model, parts=parts) if hasattr(model, "parts") else parts


def split_rows(mesh: Mesh | None, *arrays: Any) -> tuple[Any, ...]:
    """Arrays [B, ...], or tuples of them, with their rows split over a mesh; as they are without one.

    Raises:
        ConfigError: numbers of rows that the mesh does not divide.
    """
    if mesh is None:
        return arrays
    return tuple(put_batch(jax.tree.map(np.asarray, array), mesh) for array in arrays)
