"""An image encoder and a mask decoder as one model, for those who want masks without a language model (SAM)."""

import dataclasses
from typing import Any, ClassVar

import jax

from mmjax.config import ConfigError
from mmjax.encoders.dual import Tower
from mmjax.encoders.sam import SamEncoderConfig
from mmjax.generators.mask_decoder import MaskDecoderConfig, MaskModel, Masks


@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """The two parts, which must agree on the map between them."""

    encoder: SamEncoderConfig
    decoder: MaskDecoderConfig

    kind: ClassVar[str] = "segmenter"

    def __post_init__(self):
        encoder, decoder = self.encoder, self.decoder
        given = encoder.image_size, encoder.grid_size, encoder.out_width
        wanted = decoder.image_size, decoder.grid_size, decoder.width
        if given != wanted:
            raise ConfigError(
                f"segmenter: the encoder has (image_size, grid_size, out_width) {given}, the decoder "
                f"(image_size, grid_size, width) {wanted}"
            )


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """Pure functions over params encoder/..., decoder/....

    Attributes:
        config: of the two parts.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy.
    """

    config: SegmenterConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @property
    def encoder(self) -> Tower:
        """The image encoder; its params are params["encoder"]."""
        return Tower(self.config.encoder, self.dtype, self.param_dtype, self.remat)

    @property
    def decoder(self) -> MaskModel:
        """The mask decoder; its params are params["decoder"]."""
        return MaskModel(self.config.decoder, self.dtype, self.param_dtype, self.remat)

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh params."""
        encoder, decoder = jax.random.split(rng)
        return {"encoder": self.encoder.init(encoder), "decoder": self.decoder.init(decoder)}

    def param_shapes(self) -> dict[str, Any]:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> dict[str, Any]:
        """The tree of tuples of logical axis names of every leaf."""
        return {"encoder": self.encoder.param_axes(), "decoder": self.decoder.param_axes()}

    def encode(self, params: dict[str, Any], images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3], padded to squares of `image_size` -> maps [B, g, g, D], made once for all prompts."""
        return self.encoder(params["encoder"], images)["last_hidden_state"]

    def __call__(self, params: dict[str, Any], images: jax.Array, **prompts: Any) -> Masks:
        """Images [B, H, W, 3] and prompts of `MaskDecoder.__call__` -> masks."""
        return self.decoder(params["decoder"], self.encode(params, images), **prompts)
