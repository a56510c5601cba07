"""Encoders on their own, without a language model: one tower, or an image and a text tower in one space.

Radford et al., 2021 (CLIP); Zhai et al., 2023 (SigLIP). Like the multimodal model, each is a plain frozen
bundle of hyper-parameters with pure methods over a tree of params.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.encoders import ENCODERS, EncoderConfig
from mmjax.encoders.bidirectional_text import BidirectionalText, BidirectionalTextConfig
from mmjax.encoders.text import TextEncoder, TextEncoderConfig
from mmjax.encoders.vit import ViTConfig

Params = dict[str, Any]
# Towers that take tokens, by their configs.
TEXT_TOWERS = {TextEncoderConfig: TextEncoder, BidirectionalTextConfig: BidirectionalText}
TextConfig = TextEncoderConfig | BidirectionalTextConfig


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """Two towers whose vectors have the same width.

    Attributes:
        image, text: the towers; each gives the output of its projection, or its pooled vector without one.
        logit_bias: whether similarities have a learned offset besides the learned scale (SigLIP).
    """

    image: ViTConfig
    text: TextEncoderConfig
    logit_bias: bool = False

    kind: ClassVar[str] = "dual"

    def __post_init__(self):
        if self.image.pool == "none":
            raise ConfigError('dual.image.pool must be "class" or "attention", got "none"')
        image, text = (tower.projection_dim or tower.width for tower in (self.image, self.text))
        if image != text:
            raise ConfigError(f"the image tower's vectors have width {image}, the text tower's {text}")


def _unbox(tree: Any, part: str) -> Any:
    """The values ("value") or logical axis names ("names") of a tree of boxed params."""
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(lambda box: getattr(box, part), tree, is_leaf=is_box)


@dataclasses.dataclass(frozen=True)
class Tower:
    """An image or text encoder as a model of its own.

    Attributes:
        config: of the tower.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy.
    """

    config: EncoderConfig | TextConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @property
    def module(self) -> nn.Module:
        """The flax module."""
        module = (ENCODERS | TEXT_TOWERS)[type(self.config)]
        return module(self.config, jnp.dtype(self.dtype), self.remat)

    def _boxed(self, rng: jax.Array) -> Any:
        c = self.config
        if not isinstance(c, TextConfig):
            return self.module.init(rng, jnp.zeros((1, *c.item_shape)), method="create")["params"]
        return self.module.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]

    def init(self, rng: jax.Array) -> Params:
        """Fresh params in `param_dtype`, blocks stacked."""
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), _unbox(self._boxed(rng), "value"))

    def param_shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> Params:
        """The tree of tuples of logical axis names of every leaf."""
        return _unbox(jax.eval_shape(self._boxed, jax.random.key(0)), "names")

    def __call__(
        self, params: Params, values: jax.Array, mask: jax.Array | None = None, *more: jax.Array
    ) -> dict[str, jax.Array]:
        """Images [B, H, W, 3], or tokens [B, T] and their mask -> see the encoder's `run` and TEXT_TOWERS.

        An encoder that takes patches has their mask and, in `more`, the shapes of the images.
        """
        if isinstance(self.config, TextConfig):
            return self.module.apply({"params": params}, values, mask)
        given = () if mask is None else (mask, *more)
        return self.module.apply({"params": params}, values, *given, method="run")


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """Image and text towers trained to agree. Params: image/..., text/..., logit_scale [], logit_bias [].

    Attributes:
        config: of the two towers.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy.
    """

    config: DualEncoderConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @property
    def image(self) -> Tower:
        """The image tower; its params are params["image"]."""
        return Tower(self.config.image, self.dtype, self.param_dtype, self.remat)

    @property
    def text(self) -> Tower:
        """The text tower; its params are params["text"]."""
        return Tower(self.config.text, self.dtype, self.param_dtype, self.remat)

    def init(self, rng: jax.Array) -> Params:
        """Fresh params. The scale starts as published: ln(1 / 0.07), or ln(10) with offset -10 (SigLIP)."""
        image, text = jax.random.split(rng)
        scale = math.log(10.0) if self.config.logit_bias else math.log(1 / 0.07)
        params = {
            "image": self.image.init(image),
            "text": self.text.init(text),
            "logit_scale": jnp.asarray(scale, self.param_dtype),
        }
        if self.config.logit_bias:
            params["logit_bias"] = jnp.asarray(-10.0, self.param_dtype)
        return params

    def param_shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> Params:
        """The tree of tuples of logical axis names of every leaf; () for a scalar."""
        axes = {"image": self.image.param_axes(), "text": self.text.param_axes(), "logit_scale": ()}
        return {**axes, "logit_bias": ()} if self.config.logit_bias else axes

    def encode_image(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> vectors [B, D], not normalised."""
        out = self.image(params["image"], pixels)
        return out.get("embeds", out["pooled"])

    def encode_text(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Tokens int [B, T], with mask bool [B, T] or None -> vectors [B, D], not normalised."""
        out = self.text(params["text"], tokens, mask)
        return out.get("embeds", out["pooled"])

    def __call__(
        self, params: Params, tokens: jax.Array, mask: jax.Array | None, pixels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Compares every text with every image.

        Args:
            params: as `init` makes them.
            tokens, mask: int and bool [B, T]; mask may be None.
            pixels: [I, H, W, 3].

        Returns:
            logits_per_image [I, B], logits_per_text [B, I] in float32, and the normalised vectors
            image_embeds [I, D], text_embeds [B, D].
        """
        image, text = self.encode_image(params, pixels), self.encode_text(params, tokens, mask)
        image, text = (x.astype(jnp.float32) for x in (image, text))
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = text @ image.T * jnp.exp(params["logit_scale"].astype(jnp.float32))
        if self.config.logit_bias:
            logits += params["logit_bias"].astype(jnp.float32)
        return logits.T, logits, image, text
