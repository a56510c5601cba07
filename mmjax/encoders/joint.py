"""ImageBind whole: towers of several media and of text whose vectors lie in one space.

Girdhar et al., 2023, "ImageBind: One embedding space to bind them all".
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.encoders.dual import Params, Tower
from mmjax.encoders.imagebind import ImageBindTowerConfig, scaled_to
from mmjax.encoders.text import TextEncoderConfig

# Where the scale of the text vectors starts.
TEXT_SCALE = 1 / 0.07


@dataclasses.dataclass(frozen=True)
class ImageBindConfig:
    """The towers.

    Attributes:
        media: modality -> tower.
        text: the text tower, with a projection; or None.
    """

    media: dict[str, ImageBindTowerConfig]
    text: TextEncoderConfig | None = None

    kind: ClassVar[str] = "imagebind_joint"

    def __post_init__(self):
        widths = {name: tower.embed_width for name, tower in self.media.items()}
        for name, tower in self.media.items():
            if tower.modality != name:
                raise ConfigError(f'imagebind_joint.media: the tower "{name}" is one of {tower.modality}')
        if self.text is not None:
            widths["text"] = self.text.projection_dim
        if len(set(widths.values())) != 1 or None in widths.values():
            raise ConfigError(f"imagebind_joint: the towers' vectors must have one width, they have {widths}")


def imagebind_huge() -> ImageBindConfig:
    """The published model: images and video of 2 frames, text, sound, depth, heat, motion; vectors of 1024."""

    def tower(modality, clip_shape, window, sizes, **options):
        width, layers, heads = sizes
        return ImageBindTowerConfig(modality, clip_shape, window, width, layers, heads, 4 * width, **options)

    plain = dict(patch_norm=False, pre_norm=True, extra_key=False)
    media = {
        "vision": tower("vision", (1, 224, 224, 3), (2, 14, 14), (1280, 32, 16), **plain),
        "audio": tower(
            "audio", (204, 128), (16, 16), (768, 12, 12), stride=(10, 10), clips=3, logit_scale=20.0, drop_path=0.1
        ),
        "depth": tower("depth", (224, 224, 1), (16, 16), (384, 12, 8), logit_scale=5.0),
        "thermal": tower("thermal", (224, 224, 1), (16, 16), (768, 12, 12), logit_scale=10.0),
        "imu": tower("imu", (2000, 6), (8,), (512, 6, 8), logit_scale=5.0, drop_path=0.7, head_dropout=0.5),
    }
    text = TextEncoderConfig(49408, 1024, 24, 16, 4096, activation="gelu", norm_eps=1e-6, projection_dim=1024)
    return ImageBindConfig(media, text)


@dataclasses.dataclass(frozen=True)
class ImageBind:
    """The towers as one model. Params: MODALITY/..., text/... and text_scale [].

    Attributes:
        config: of the towers.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy.
    """

    config: ImageBindConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    def tower(self, name: str) -> Tower:
        """The tower of a modality or "text"; its params are params[name].

        Raises:
            KeyError: there is no such tower.
        """
        config = self.config.text if name == "text" else self.config.media[name]
        if config is None:
            raise KeyError("text")
        return Tower(config, self.dtype, self.param_dtype, self.remat)

    @property
    def names(self) -> tuple[str, ...]:
        """The towers there are."""
        return (*self.config.media, *(() if self.config.text is None else ("text",)))

    def init(self, rng: jax.Array) -> Params:
        """Fresh params."""
        rngs = jax.random.split(rng, len(self.names))
        params: Params = {name: self.tower(name).init(key) for name, key in zip(self.names, rngs, strict=True)}
        if self.config.text is not None:
            params["text_scale"] = jnp.asarray(math.log(TEXT_SCALE), self.param_dtype)
        return params

    def param_shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> Params:
        """The tree of tuples of logical axis names of every leaf; () for a scalar."""
        axes: Params = {name: self.tower(name).param_axes() for name in self.names}
        return axes if self.config.text is None else {**axes, "text_scale": ()}

    def __call__(self, params: Params, inputs: dict[str, Any]) -> dict[str, jax.Array]:
        """Items of several modalities -> vectors in one space.

        Args:
            params: as `init` makes them.
            inputs: modality -> [B, *item_shape]; "text" -> tokens int [B, T], the end-of-text token being the
                highest id of a row.

        Returns:
            modality -> [B, E], normalised and scaled as its tower does; dot products of two modalities' vectors
            are their similarities.

        Raises:
            KeyError: there is no such tower.
        """
        out = {name: self.tower(name)(params[name], values)["embeds"] for name, values in inputs.items()}
        if "text" in out:
            out["text"] = scaled_to(out["text"], params["text_scale"])
        return out
