"""A VQ autoencoder as a model of its own, for those who want the codes of media without a language model."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoder, VideoVQAutoencoderConfig
from mmjax.generators.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig

# The one place where an autoencoder's config meets its module.
CODECS = {VQAutoencoderConfig: VQAutoencoder, VideoVQAutoencoderConfig: VideoVQAutoencoder}


@dataclasses.dataclass(frozen=True)
class CodecModel:
    """Pure functions over plain nested dicts of params.

    Attributes:
        config: of the autoencoder.
        dtype, param_dtype, remat: compute dtype, dtype of the params; `remat` is not used.
    """

    config: Any
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @property
    def module(self) -> nn.Module:
        """The flax module."""
        return CODECS[type(self.config)](self.config, jnp.dtype(self.dtype))

    def _boxed(self, rng: jax.Array) -> Any:
        return self.module.init(rng, jnp.zeros((1, *self.config.feature_shape)), method="create")["params"]

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh params in `param_dtype`."""
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), nn.unbox(self._boxed(rng)))

    def param_shapes(self) -> dict[str, Any]:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> dict[str, Any]:
        """The tree of tuples of logical axis names of every leaf."""
        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))
        return jax.tree.map(lambda box: box.names, boxed, is_leaf=is_box)

    def encode(self, params: dict[str, Any], media: jax.Array) -> jax.Array:
        """Images [B, H, W, channels] -> codes int32 [B, h, w]; or videos, where the module encodes them."""
        latents = self.module.apply({"params": params}, media, method="encode")
        return self.module.apply({"params": params}, latents, method="quantize").codes

    def decode(self, params: dict[str, Any], codes: jax.Array) -> jax.Array:
        """Codes int32 [B, h, w] -> images [B, H, W, channels], about -1 to 1; or to videos, as `encode`."""
        return self.module.apply({"params": params}, codes, method="decode")
