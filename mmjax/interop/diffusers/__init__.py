"""Components of diffusers pipelines: a directory with config.json and weights, read and written without torch."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, nearest
from mmjax.generators.autoencoder import Autoencoder, AutoencoderConfig
from mmjax.generators.controlnet import ControlNet, ControlNetConfig
from mmjax.generators.dit import DiT, DiTConfig
from mmjax.generators.mmdit import MMDiT, MMDiTConfig
from mmjax.generators.pixart import PixArt, PixArtConfig
from mmjax.generators.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.generators.unet3d import UNet3D, UNet3DConfig
from mmjax.generators.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig
from mmjax.generators.wan import Wan, WanConfig
from mmjax.interop.diffusers import (
    autoencoder_kl,
    autoencoder_tiny,
    controlnet,
    dit_transformer_2d,
    pixart_transformer_2d,
    sd3_transformer_2d,
    unet_2d_condition,
    unet_3d_condition,
    vq_model,
    wan_transformer_3d,
)
from mmjax.interop.table import export_params, import_params, rename
from mmjax.interop.tensors import DIFFUSION, WeightsError, read_directory, write_directory

# The one place where the name of a class meets our module and its table.
FAMILIES = {
    family.CLASS: family
    for family in (
        autoencoder_kl,
        autoencoder_tiny,
        controlnet,
        dit_transformer_2d,
        pixart_transformer_2d,
        sd3_transformer_2d,
        unet_2d_condition,
        unet_3d_condition,
        vq_model,
        wan_transformer_3d,
    )
}
MODULES = {
    AutoencoderConfig: Autoencoder,
    TinyAutoencoderConfig: TinyAutoencoder,
    UNetConfig: UNet,
    ControlNetConfig: ControlNet,
    UNet3DConfig: UNet3D,
    VQAutoencoderConfig: VQAutoencoder,
    DiTConfig: DiT,
    PixArtConfig: PixArt,
    MMDiTConfig: MMDiT,
    WanConfig: Wan,
}
OF_CONFIG = {
    AutoencoderConfig: autoencoder_kl,
    TinyAutoencoderConfig: autoencoder_tiny,
    UNetConfig: unet_2d_condition,
    ControlNetConfig: controlnet,
    UNet3DConfig: unet_3d_condition,
    VQAutoencoderConfig: vq_model,
    DiTConfig: dit_transformer_2d,
    PixArtConfig: pixart_transformer_2d,
    MMDiTConfig: sd3_transformer_2d,
    WanConfig: wan_transformer_3d,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """What a directory holds: our config, params as nested dicts, config.json as it stands there."""

    config: Any
    params: dict[str, Any]
    hf_config: dict[str, Any]


def param_shapes(config: Any, dtype: str = "float32") -> dict[str, Any]:
    """The tree of `jax.ShapeDtypeStruct` of a component."""
    values = jnp.zeros((1, *config.feature_shape))
    module = MODULES[type(config)](config)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), values, method="create")["params"])

    def shape(box):
        return jax.ShapeDtypeStruct(box.value.shape, jnp.dtype(dtype))

    return jax.tree.map(shape, boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))


def param_axes(config: Any) -> dict[str, Any]:
    """The tree of tuples of logical axis names of a component, one name a dimension."""
    values = jnp.zeros((1, *config.feature_shape))
    module = MODULES[type(config)](config)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), values, method="create")["params"])
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))


def load(
    directory: str | os.PathLike, dtype: str = "float32", put: Callable[[str, np.ndarray], Any] | None = None
) -> Component:
    """Reads what diffusers' `save_pretrained` wrote for one component.

    Args:
        directory: holds config.json and safetensors (or a .bin, read without running pickled code).
        dtype: of the params.
        put: (path, array) -> what stands in params; a jax array on the default device unless told.

    Raises:
        FileNotFoundError: no config.json or no weights.
        ConfigError: a class or an option that is not supported.
        WeightsError: one list of every missing, left-over and misshapen tensor.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no config.json")
    hf = json.loads(path.read_text(encoding="utf-8"))
    name = hf.get("_class_name")
    if name not in FAMILIES:
        raise ConfigError(
            f"{path}: _class_name {name!r} is not supported.{nearest(str(name), FAMILIES)} "
            f"Supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    config = family.config_from_hf(hf)
    tensors = rename(read_directory(directory), family.rewrites(config))
    try:
        put = put or (lambda path, array: jnp.array(array))
        params = import_params(family.table(config, hf), tensors, param_shapes(config, dtype), put, family.IGNORE)
    except WeightsError as error:
        raise WeightsError(f"{directory}: {error}") from error
    return Component(config, params, hf)


def save(
    directory: str | os.PathLike, config: Any, params: Mapping[str, Any], hf_config: Mapping[str, Any] | None = None
) -> list[Path]:
    """Writes a directory that diffusers' `from_pretrained` loads, with the same outputs.

    Raises:
        ConfigError: no class can say this config.
        WeightsError: the params do not fit it.
    """
    if type(config) not in OF_CONFIG:
        raise ConfigError(f"diffusers has no class for a {type(config).__name__}")
    family, directory = OF_CONFIG[type(config)], Path(directory)
    out = family.config_to_hf(config, hf_config)
    written = write_directory(directory, export_params(family.table(config, out), params), stem=DIFFUSION)
    path = directory / "config.json"
    path.write_text(json.dumps(out, indent=2, sort_keys=True) + "\n")
    return [*written, path]
