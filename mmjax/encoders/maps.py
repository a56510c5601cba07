"""What encoders with a pyramid of feature maps share: images in, maps of chosen stages out as media."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media


def check_stages(kind: str, feature_stages: Sequence[int], **per_stage: Sequence[int]) -> None:
    """Raises ConfigError unless there is a stage, all per-stage options have one value a stage, and every
    stage that features are taken from is there, the last one named as the final one or not."""
    counts = {name: len(values) for name, values in per_stage.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConfigError(f"{kind}: options of the stages must be as many and at least one: {found}")
    if not feature_stages:
        raise ConfigError(f"{kind}.feature_stages must name at least one stage")
    count = next(iter(counts.values()))
    for stage in feature_stages:
        if not -count <= stage < count:
            raise ConfigError(f"{kind}.feature_stages: {stage} is not among the {count} stages")


def images_of(media: Media, image_size: int) -> jax.Array:
    """Raw images [B, I, H, W, 3] -> [B * I, H, W, 3].

    Raises:
        ValueError: images of another size than `image_size`, whose features would not be as many as planned.
    """
    if media.values.shape[2:4] != (image_size, image_size):
        height, width = media.values.shape[2:4]
        raise ValueError(
            f"images of {height} x {width} pixels for an encoder whose features are counted for "
            f"{image_size} x {image_size}"
        )
    return media.values.reshape(-1, *media.values.shape[2:])


def media_of(media: Media, maps: Sequence[jax.Array], stages: Sequence[int]) -> Media:
    """Maps of all stages -> encoded media.

    Args:
        media: the raw images [B, I, H, W, 3] that were encoded.
        maps: [B * I, h, w, D] of each stage.
        stages: the last one named becomes `values` [B, I * h * w, D], the others go to
            `extra_features` as "stage_{number}", [B, I * h * w, D] of their own sizes.
    """
    batch = media.values.shape[0]

    def rows(x):
        return x.reshape(batch, -1, x.shape[-1])

    numbers = [stage % len(maps) for stage in stages]
    values = rows(maps[numbers[-1]])
    extra = {f"stage_{number}": rows(maps[number]) for number in numbers[:-1]}
    segments = media.segment_ids
    if segments is not None:
        segments = jnp.repeat(jnp.asarray(segments), values.shape[1] // media.values.shape[1], axis=1)
    if extra:
        extra = {**(media.extra_features or {}), **extra}
    return media.replace(
        values=values,
        segment_ids=segments,
        extra_features=extra or media.extra_features,
        stage="encoded",
    )
