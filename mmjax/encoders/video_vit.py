"""The vision transformer over tubelets: patches that reach over several frames, all of a video in one sequence.

| family | options beside the sizes |
|---|---|
| VideoMAE | the defaults; final_norm in checkpoints without mean pooling, pool "mean" in classifiers with it |
| ViViT, model 1 | positions "learned", class_token, final_norm, key_bias, pool "dense", activation "gelu_tanh" |

Tong et al., 2022 (VideoMAE); Arnab et al., 2021 (ViViT: joint space-time attention is its model 1).
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.each import encode_each
from mmjax.encoders.key_bias import with_key_bias, without_key_bias
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# Of the norm behind the mean over all tokens, whatever the blocks have.
POOL_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class VideoViTConfig:
    """Sizes and options of a transformer over tubelets.

    Attributes:
        num_frames, image_size: of one item; pixels of a side.
        tubelet_size, patch_size: frames and pixels of a side of a tubelet. What no whole tubelet covers is dropped.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        activation, norm_eps: of the blocks.
        positions: "sine" (fixed, no parameter) or "learned".
        class_token: whether a learned token stands before the tubelets.
        final_norm: whether there is a norm behind the blocks.
        pool: "none"; "mean" (of all tokens, then a norm of its own); "dense" (the class token through a linear map
            and tanh).
        qkv_bias, key_bias: whether q and v have biases; whether k then has one too.
        feature_strategy: "full", or "patches": without the class token.
    """

    num_frames: int
    image_size: int
    tubelet_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "gelu"
    norm_eps: float = 1e-12
    positions: str = "sine"
    class_token: bool = False
    final_norm: bool = False
    pool: str = "none"
    qkv_bias: bool = True
    key_bias: bool = False
    feature_strategy: str = "full"

    kind: ClassVar[str] = "video_vit"

    def __post_init__(self):
        check_activation("video_vit.activation", self.activation)
        check_choice("video_vit.positions", self.positions, ("sine", "learned"))
        check_choice("video_vit.pool", self.pool, ("none", "mean", "dense"))
        check_choice("video_vit.feature_strategy", self.feature_strategy, ("full", "patches"))
        for name in ("tubelet_size", "patch_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"video_vit.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ConfigError(f"video_vit.width {self.width} is not a multiple of num_heads {self.num_heads}")
        for size, part in (("num_frames", "tubelet_size"), ("image_size", "patch_size")):
            if getattr(self, size) < getattr(self, part):
                raise ConfigError(
                    f"video_vit.{size} {getattr(self, size)} is smaller than {part} {getattr(self, part)}"
                )
        if self.pool == "dense" and not self.class_token:
            raise ConfigError('video_vit.pool "dense" needs class_token')
        if self.key_bias and not self.qkv_bias:
            raise ConfigError("video_vit.key_bias needs qkv_bias")

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Tubelets of an item along (time, height, width)."""
        side = self.image_size // self.patch_size
        return (self.num_frames // self.tubelet_size, side, side)

    @property
    def num_patches(self) -> int:
        """P: tubelets of an item."""
        time, height, width = self.grid_size
        return time * height * width

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (frames, H, W, 3)."""
        return (self.num_frames, self.image_size, self.image_size, 3)

    @property
    def num_dropped(self) -> int:
        """How many tokens from the first on the features leave out."""
        return int(self.class_token and self.feature_strategy == "patches")

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
            qkv_bias=self.qkv_bias,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item; neither argument matters, since every item has one size."""
        return self.num_patches + int(self.class_token) - self.num_dropped


def tubelets_of(videos: jax.Array, frames: int, side: int) -> jax.Array:
    """[B, time, H, W, C] -> [B, P, frames, side, side, C], by time, then row by row; a rest at an end is dropped."""
    batch, time, rows, columns = (
        videos.shape[0], videos.shape[1] // frames, videos.shape[2] // side, videos.shape[3] // side
    )  # fmt: skip
    x = videos[:, : time * frames, : rows * side, : columns * side]
    x = x.reshape(batch, time, frames, rows, side, columns, side, videos.shape[-1])
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, time * rows * columns, frames, side, side, videos.shape[-1])


def paired_sines(length: int, width: int) -> np.ndarray:
    """float32 [length, width]: sine and cosine side by side, channels 2 i and 2 i + 1 at 10000^(-2 i / width)."""
    channel = np.arange(width)
    angles = np.arange(length)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def check_videos(videos: jax.Array, item_shape: tuple[int, ...]) -> None:
    """Raises ValueError, with both shapes, unless videos [B, frames, H, W, 3] are what the encoder takes."""
    if videos.shape[1:] != item_shape:
        raise ValueError(
            f"videos of (frames, height, width, channels) {tuple(videos.shape[1:])}, but the encoder takes {item_shape}"
        )


class VideoViT(nn.Module):
    """Videos to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Parameters patch_embed {kernel [frames, side, side, 3, D], bias}, class_embedding [D], position_embedding [N, D],
    blocks/... as in `Block`, without attn/k/bias where key_bias is False; post_norm, pool_norm, pooler.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: VideoViTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        axes = ("patch", "patch", "patch", None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=4, use_bias=True, dtype=self.dtype)
        normal = nn.initializers.normal(0.02)
        if c.class_token:
            init = nn.with_logical_partitioning(normal, ("embed",))
            self.class_embedding = self.param("class_embedding", init, (c.width,))
        if c.positions == "learned":
            init = nn.with_logical_partitioning(normal, (None, "embed"))
            shape = (c.num_patches + int(c.class_token), c.width)
            self.position_embedding = self.param("position_embedding", init, shape)
        if c.final_norm:
            self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.pool == "mean":
            self.pool_norm = LayerNorm(POOL_NORM_EPS, self.dtype)
        if c.pool == "dense":
            self.pooler = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            stack = init_stack(self.block, c.num_layers, jnp.zeros((1, 1, c.width), self.dtype))
            bare = lambda rng: without_key_bias(stack(rng))
            self.blocks = self.param("blocks", bare if self._bare_keys else stack)
        else:
            self.blocks = self.get_variable("params", "blocks")

    @property
    def _bare_keys(self) -> bool:
        return self.config.qkv_bias and not self.config.key_bias

    def _embed(self, videos: jax.Array) -> jax.Array:
        """Videos [B, frames, H, W, 3] -> what block 0 takes, [B, N, D]."""
        c = self.config
        check_videos(videos, c.item_shape)
        x = self.patch_embed(tubelets_of(videos, c.tubelet_size, c.patch_size))
        if c.class_token:
            first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([first, x], axis=1)
        table = self.position_embedding if c.positions == "learned" else paired_sines(x.shape[1], c.width)
        return x + jnp.asarray(table, self.dtype)

    def run(self, values: jax.Array, kept: jax.Array | None = None) -> dict[str, Any]:
        """The whole tower on videos.

        Args:
            values: [B, frames, H, W, 3].
            kept: int [B, V], the tokens that go through the blocks (masked autoencoding); None for all.

        Returns:
            "last_hidden_state" [B, N or V, D]; "pooled" [B, D] unless pool is "none".

        Raises:
            ValueError: videos of another size or number of frames.
        """
        c = self.config
        x = self._embed(values)
        if kept is not None:
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            params = with_key_bias(params) if self._bare_keys else params
            return self.block.apply({"params": params}, x, cache=cache)

        x, _ = run_stack(apply, self.blocks, x, remat=self.remat)
        x = self.post_norm(x) if c.final_norm else x
        out = {"last_hidden_state": x}
        if c.pool == "mean":
            out["pooled"] = self.pool_norm(jnp.mean(x.astype(jnp.float32), axis=1))
        elif c.pool == "dense":
            out["pooled"] = jnp.tanh(self.pooler(x[:, 0]))
        return out

    def __call__(self, media: Media) -> Media:
        """Videos [B, I, frames, H, W, 3] -> features of all tubelets [B, I * N, D], each item's after the other's."""
        return encode_each(media, lambda videos: self.run(videos)["last_hidden_state"][:, self.config.num_dropped :])

    def create(self, values: jax.Array) -> dict[str, Any]:
        """Touches every parameter once: what `init` runs. values [B, frames, H, W, 3]."""
        return self.run(values)
