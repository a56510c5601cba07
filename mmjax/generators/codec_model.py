"""A VQ autoencoder as a model of its own, for those who want the codes of media without a language model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.generators.part_model import PartModel
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoder, VideoVQAutoencoderConfig
from mmjax.generators.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig

# The one place where an autoencoder's config meets its module.
CODECS = {VQAutoencoderConfig: VQAutoencoder, VideoVQAutoencoderConfig: VideoVQAutoencoder}


class CodecModel(PartModel):
    """A VQ autoencoder as a model of its own."""

    @property
    def module(self) -> nn.Module:
        """The flax module."""
        return CODECS[type(self.config)](self.config, jnp.dtype(self.dtype))

    def encode(self, params: dict[str, Any], media: jax.Array) -> jax.Array:
        """Images [B, H, W, channels] -> codes int32 [B, h, w]; or videos, where the module encodes them."""
        latents = self._apply(params, media, method="encode")
        return self._apply(params, latents, method="quantize").codes

    def decode(self, params: dict[str, Any], codes: jax.Array) -> jax.Array:
        """Codes int32 [B, h, w] -> images [B, H, W, channels], about -1 to 1; or to videos, as `encode`."""
        return self._apply(params, codes, method="decode")
