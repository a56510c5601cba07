"""Ports of regions in a model: what their images must be, and what is read of these.

A region is an item of a port of its own, and stands in the text as its tokens; its projector reads the features of the
image that it is of, which is encoded once for both.
"""

from collections.abc import Mapping
from typing import Any

import jax

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.projectors.regions.region_tokens import FEATURES, RegionTokensConfig
from mmjax.projectors.tiles import TilesConfig


def check_regions(config: Any) -> None:
    """Raises ConfigError unless the ports of regions of a `MultimodalLMConfig` fit those of their images."""
    for port, projector in config.projectors.items():
        if isinstance(projector, RegionTokensConfig) != (port in config.regions):
            raise ConfigError(
                f"regions has ports {sorted(config.regions)}; projectors.{port} is a {projector.kind!r}, those of "
                f"regions are {RegionTokensConfig.kind!r}"
            )
    images = tuple(name for name in config.encoders if name not in config.regions)
    for port, image in config.regions.items():
        check_choice("regions", port, tuple(config.projectors))
        check_choice(f"regions.{port}", image, images)
        if getattr(config.encoders[image], "packed", False) or isinstance(config.projectors.get(image), TilesConfig):
            raise ConfigError(f"regions.{port}: the images of port {image!r} have no map of one size")
        shape, size = config.encoders[port].item_shape, config.projectors[port].mask_size
        if shape != (size or (4,)):
            raise ConfigError(f"encoders.{port} gives regions of {shape}; projectors.{port}.mask_size is {size}")


def maps_of(config: Any, port: str, encoded: Mapping[str, Media]) -> dict[str, jax.Array]:
    """What a port of regions reads of the I images of every row.

    Args:
        config: a `MultimodalLMConfig`.
        port: of the regions.
        encoded: media of the other ports.

    Returns:
        The wanted maps by name, each [B, I, places, channels].

    Raises:
        ValueError: no features of images, or none any more.
    """
    image = config.regions[port]
    if image not in encoded or encoded[image].stage != "encoded":
        found = "missing" if image not in encoded else encoded[image].stage
        raise ValueError(
            f"regions of port {port!r} read the features of port {image!r}, which is {found}: give its media raw or "
            "encoded"
        )
    media, each = encoded[image], config.encoders[image].num_tokens()
    batch, images = media.values.shape[0], media.values.shape[1] // each
    maps = {FEATURES: media.values, **(media.extra_features or {})}
    levels = config.projectors[port].levels
    return {name: x.reshape(batch, images, -1, x.shape[-1]) for name, x in maps.items() if name in levels}
