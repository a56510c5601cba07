"""The maps that region projectors read."""

from collections.abc import Sequence

import jax

from mmjax.config import ConfigError


def check_widths(kind: str, in_widths: Sequence[int]) -> None:
    """Raises ConfigError unless there is at least one map."""
    if not in_widths:
        raise ConfigError(f"{kind}.in_widths must name the channels of at least one map")


def check_levels(kind: str, in_widths: Sequence[int], levels: Sequence[jax.Array], regions: jax.Array) -> None:
    """Raises ValueError unless maps are [B, h, w, C] with the channels of a config, of as many images as regions."""
    found = [tuple(level.shape) for level in levels]
    if [shape[-1] for shape in found] != list(in_widths) or any(len(shape) != 4 for shape in found):
        raise ValueError(f"{kind}: maps are {found}; wanted [B, h, w, C] with C of {list(in_widths)}")
    if {shape[0] for shape in found} != {regions.shape[0]}:
        raise ValueError(f"{kind}: regions are {tuple(regions.shape)}, of maps {found}")
