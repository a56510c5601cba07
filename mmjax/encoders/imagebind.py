"""A media tower of ImageBind: images, video, sound, depth, heat or motion to one vector in a space that all share.

Girdhar et al., 2023, "ImageBind: One embedding space to bind them all". Every tower is a vision transformer over the
patches of its medium; its text tower is `mmjax.encoders.text.TextEncoder`, and `mmjax.encoders.joint` holds all six.
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.key_block import KeyBlock
from mmjax.nn.block import BlockConfig
from mmjax.nn.drop_path import drop_rates
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# Axes of a clip without channels, by modality; what has no channels axis gets one.
MODALITIES = {"vision": 3, "audio": 2, "depth": 2, "thermal": 2, "imu": 1}
# The normalised vectors are scaled by no more than this.
MAX_SCALE = 100.0
STRATEGIES = ("embeds", "pooled", "full", "patches")


@dataclasses.dataclass(frozen=True)
class ImageBindTowerConfig:
    """Sizes and options of one media tower.

    Attributes:
        modality: "vision", "audio", "depth", "thermal" or "imu".
        clip_shape: of one clip: vision (frames, H, W, 3), where one frame is taken as often as a patch is long;
            audio (frames, mel); depth and thermal (H, W, 1); imu (samples, sensor channels).
        window, stride: of patches: (frames, H, W), (mel, frames), (H, W) or (samples,); stride None is the window.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        embed_width: of the space that all towers share.
        clips: clips of one item, whose vectors are averaged; with more than one, items have a leading axis.
        activation, norm_eps: of the blocks.
        patch_norm: whether patches are normalised after their map (all but vision).
        pre_norm: whether a norm stands before the blocks (vision).
        extra_key: whether attention has one learned key and value besides its tokens' (all but vision).
        logit_scale: what normalised vectors are multiplied by at the start, or None (vision).
        learned_scale: whether that is trained.
        drop_path: stochastic depth of the last block, those before it in equal steps from 0; it and
            `head_dropout`, of what the map into the shared space reads, act when the rng "dropout" is given.
        feature_strategy: "embeds", the item's final vector as 1 token; "pooled", the one of each clip before it
            is normalised; "full", all normed tokens of the trunk; "patches", those without the class token.
    """

    modality: str
    clip_shape: tuple[int, ...]
    window: tuple[int, ...]
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    embed_width: int = 1024
    stride: tuple[int, ...] | None = None
    clips: int = 1
    activation: str = "gelu"
    norm_eps: float = 1e-6
    patch_norm: bool = True
    pre_norm: bool = False
    extra_key: bool = True
    logit_scale: float | None = None
    learned_scale: bool = False
    drop_path: float = 0.0
    head_dropout: float = 0.0
    feature_strategy: str = "embeds"

    kind: ClassVar[str] = "imagebind"

    def __post_init__(self):
        check_choice("imagebind.modality", self.modality, tuple(MODALITIES))
        check_choice("imagebind.feature_strategy", self.feature_strategy, STRATEGIES)
        check_activation("imagebind.activation", self.activation)
        axes = MODALITIES[self.modality]
        for name, wanted in (
            ("clip_shape", axes + (self.modality != "audio")),
            ("window", axes),
            ("stride", axes),
        ):
            given = getattr(self, name)
            if given is not None and (len(given) != wanted or min(given) < 1):
                raise ConfigError(
                    f"imagebind.{name} of {self.modality} has {wanted} sizes of at least 1, got {list(given)}"
                )
        if any(size < window for size, window in zip(self.padded_shape, self.window, strict=False)):
            raise ConfigError(
                f"imagebind.window {list(self.window)} is larger than a clip of {list(self.padded_shape[:axes])}"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"imagebind.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.clips < 1:
            raise ConfigError(f"imagebind.clips must be at least 1, got {self.clips}")
        for name in ("drop_path", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"imagebind.{name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of a clip as patches are cut from it: axes in the order of `window`, then channels."""
        if self.modality == "audio":
            return (*self.clip_shape[::-1], 1)
        if self.modality == "vision" and self.clip_shape[0] == 1:
            return (self.window[0], *self.clip_shape[1:])
        return self.clip_shape

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Patches along each axis; what no whole patch covers is dropped."""
        sizes = zip(self.padded_shape, self.window, self.stride or self.window, strict=False)
        return tuple((size - window) // stride + 1 for size, window, stride in sizes)

    @property
    def num_patches(self) -> int:
        """P: patches of one clip."""
        return math.prod(self.grid_size)

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.embed_width if self.feature_strategy in ("embeds", "pooled") else self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item: a clip, or several."""
        return self.clip_shape if self.clips == 1 else (self.clips, *self.clip_shape)

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item; neither argument matters, since every item has one size."""
        one = {"embeds": 1, "pooled": self.clips}
        return one.get(self.feature_strategy, self.clips * (self.num_patches + (self.feature_strategy == "full")))


def patches_of(clips: jax.Array, config: ImageBindTowerConfig) -> jax.Array:
    """Clips [B, *clip_shape] -> [B, P, *window, channels], the last axis of the grid running fastest."""
    c = config
    if c.modality == "audio":
        clips = clips.swapaxes(1, 2)[..., None]
    if c.modality == "vision" and c.clip_shape[0] == 1:
        clips = jnp.repeat(clips, c.window[0], axis=1)
    axes = len(c.window)
    for axis, (count, window, stride) in enumerate(zip(c.grid_size, c.window, c.stride or c.window, strict=True)):
        # Each axis becomes two: which patch, and where in it.
        index = np.arange(count)[:, None] * stride + np.arange(window)
        clips = jnp.take(clips, index, axis=1 + 2 * axis)
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return clips.transpose(order).reshape(clips.shape[0], c.num_patches, *c.window, -1)


def scaled_to(x: jax.Array, log_scale: jax.Array | None) -> jax.Array:
    """Vectors [..., E] -> those of length 1, or exp(log_scale) but at most MAX_SCALE; in float32 on the way."""
    wide = x.astype(jnp.float32)
    # Bounded before the root, whose slope at 0 is not finite.
    wide = wide * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(wide), axis=-1, keepdims=True), 1e-24))
    if log_scale is not None:
        wide = wide * jnp.minimum(jnp.exp(log_scale.astype(jnp.float32)), MAX_SCALE)
    return wide.astype(x.dtype)


class ImageBindTower(nn.Module):
    """One medium to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: ImageBindTowerConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), ("embed",))
        positions = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), (None, "embed"))
        axes = (*("patch",) * len(c.window), None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=len(c.window) + 1, dtype=self.dtype)
        if c.patch_norm:
            # The published towers leave this one norm its framework's default.
            self.patch_norm = LayerNorm(1e-5, self.dtype)
        self.class_embedding = self.param("class_embedding", embed, (c.width,))
        self.position_embedding = self.param("position_embedding", positions, (c.num_patches + 1, c.width))
        if c.pre_norm:
            self.pre_norm = LayerNorm(c.norm_eps, self.dtype)
        self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        self.projection = Linear((c.embed_width,), ("embed", "feature"), dtype=self.dtype)
        if c.logit_scale is not None:
            start = nn.with_logical_partitioning(nn.initializers.constant(math.log(c.logit_scale)), ())
            self.log_scale = self.param("logit_scale", start, ())
        self.block = KeyBlock(c.block, c.extra_key, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def _tokens(self, clips: jax.Array) -> jax.Array:
        """Clips [B, *clip_shape] -> normed tokens of the trunk [B, 1 + P, D]."""
        c = self.config
        x = self.patch_embed(patches_of(clips, c))
        if c.patch_norm:
            x = self.patch_norm(x)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (x.shape[0], 1, c.width))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding.astype(self.dtype)
        if c.pre_norm:
            x = self.pre_norm(x)
        x = constrain(x, "batch", None, "act_embed")
        drop = None
        if c.drop_path and self.has_rng("dropout"):
            drop = jnp.asarray(drop_rates(c.drop_path, c.num_layers)), jax.random.split(
                self.make_rng("dropout"), c.num_layers
            )
            if isinstance(self.blocks, tuple):
                drop = tuple(zip(*drop, strict=True))

        def apply(params, x, drop):
            return self.block.apply({"params": params}, x, drop), drop

        x, _ = run_stack(apply, self.blocks, x, drop, self.remat)
        return self.post_norm(x)

    def _project(self, x: jax.Array) -> jax.Array:
        """Class tokens [B, D] -> [B, embed_width]."""
        rate = self.config.head_dropout
        if rate and self.has_rng("dropout"):
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
        return self.projection(x)

    def _normalise(self, x: jax.Array) -> jax.Array:
        """Vectors [B, E] -> those of length 1, or of the tower's scale."""
        if self.config.logit_scale is None:
            return scaled_to(x, None)
        return scaled_to(x, self.log_scale if self.config.learned_scale else jax.lax.stop_gradient(self.log_scale))

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """The whole tower on items.

        Args:
            values: [B, *item_shape].

        Returns:
            "last_hidden_state" [B, clips * (1 + P), D], normed; "pooled" [B, clips, E], the vector of each clip;
            "embeds" [B, E], their mean after each is normalised and scaled.

        Raises:
            ValueError: items of another shape.
        """
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(
                f"{c.modality} items have shape {list(values.shape[1:])}, but the encoder takes {list(c.item_shape)}"
            )
        x = self._tokens(values.reshape(-1, *c.clip_shape))
        pooled = self._project(x[:, 0])
        embeds = self._normalise(pooled).reshape(-1, c.clips, c.embed_width)
        return {
            "last_hidden_state": x.reshape(values.shape[0], -1, c.width),
            "pooled": pooled.reshape(embeds.shape),
            "embeds": jnp.mean(embeds, axis=1),
        }

    def __call__(self, media: Media) -> Media:
        """Items [B, I, *item_shape] -> features [B, I * N, D or E], each item's after the other's."""
        c = self.config
        batch, items = media.values.shape[:2]
        clips = media.values.reshape(batch * items, *media.values.shape[2:])
        # An image may come without the axis of its one frame.
        out = self.run(clips[:, None] if clips.shape[1:] == self.config.item_shape[1:] else clips)
        if c.feature_strategy == "embeds":
            x = out["embeds"][:, None]
        elif c.feature_strategy == "pooled":
            x = out["pooled"]
        else:
            x = out["last_hidden_state"].reshape(batch * items * c.clips, -1, c.width)
            x = x[:, c.feature_strategy == "patches" :]
        x = x.reshape(batch, -1, x.shape[-1])
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), c.num_tokens(), axis=1)
        return media.replace(values=x, segment_ids=segments, stage="encoded")

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, *item_shape]."""
        return self.run(values)
