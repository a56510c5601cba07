"""TimeSformer: an image transformer whose blocks also attend over time.

Bertasius, Wang & Torresani, 2021, "Is space-time attention all you need for video understanding?". Three of its
schemes: divided (each patch over time, then each frame over space), joint (all patches of all frames), space only.
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
from mmjax.encoders.divided_block import DividedBlock
from mmjax.encoders.each import encode_each
from mmjax.encoders.vit import patches_of
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class TimeSformerConfig:
    """Sizes and options of a TimeSformer.

    Attributes:
        num_frames: that it has time embeddings for; of videos with others the nearest are taken.
        image_size, patch_size: pixels of a side; what no whole patch covers is dropped.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        attention: "divided", "joint" or "space".
        activation, norm_eps: of the blocks.
        qkv_bias: whether q, k and v have biases.
        feature_strategy: "full", or "patches": without class tokens.
    """

    num_frames: int
    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    attention: str = "divided"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    feature_strategy: str = "full"

    kind: ClassVar[str] = "timesformer"

    def __post_init__(self):
        check_activation("timesformer.activation", self.activation)
        check_choice("timesformer.attention", self.attention, ("divided", "joint", "space"))
        check_choice("timesformer.feature_strategy", self.feature_strategy, ("full", "patches"))
        for name in ("num_frames", "patch_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"timesformer.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ConfigError(f"timesformer.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"timesformer.image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )

    @property
    def num_patches(self) -> int:
        """P: patches of one frame."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (frames, H, W, 3)."""
        return (self.num_frames, self.image_size, self.image_size, 3)

    @property
    def block(self) -> BlockConfig:
        """The config of one block, or of the spatial half and the MLP of a divided one."""
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
        """Features of one video.

        Args:
            grid: (frames, height, width) where the video has another number of frames than `num_frames`.
            original_size: does not matter.
        """
        frames = self.num_frames if grid is None else int(grid[0])
        classes = 0 if self.feature_strategy == "patches" else frames if self.attention == "space" else 1
        return frames * self.num_patches + classes


class TimeSformer(nn.Module):
    """Videos to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Parameters patch_embed, class_embedding [D], position_embedding [1 + P, D], time_embedding [frames, D] unless
    attention is "space", blocks/... as in `DividedBlock` or `Block`, post_norm.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: TimeSformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02)
        axes = ("patch", "patch", None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=3, use_bias=True, dtype=self.dtype)
        self.class_embedding = self.param(
            "class_embedding", nn.with_logical_partitioning(normal, ("embed",)), (c.width,)
        )
        positions = nn.with_logical_partitioning(normal, (None, "embed"))
        self.position_embedding = self.param("position_embedding", positions, (1 + c.num_patches, c.width))
        if c.attention != "space":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
            self.time_embedding = self.param("time_embedding", zeros, (c.num_frames, c.width))
        self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        dummy = jnp.zeros((1, 2, c.width), self.dtype)
        if c.attention == "divided":
            self.block = DividedBlock(c.block, self.dtype, parent=None)
            init = init_stack(self.block, c.num_layers, dummy, 1)
        else:
            self.block = Block(c.block, self.dtype, parent=None)
            init = init_stack(self.block, c.num_layers, dummy)
        self.blocks = self.param("blocks", init) if self.is_initializing() else self.get_variable("params", "blocks")

    def _times(self, frames: int) -> jax.Array:
        """Time embeddings [frames, D]: of another number than there are, the nearest from below."""
        place = np.arange(frames) * self.config.num_frames // frames
        return self.time_embedding[place].astype(self.dtype)

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """The whole tower on videos [B, frames, H, W, 3] of any number of frames.

        Returns:
            "last_hidden_state", normed, in the published order: [B, 1 + P * frames, D], the class token, then all
            frames of the first patch and so on; with attention "space" [B * frames, 1 + P, D].

        Raises:
            ValueError: images of another size.
        """
        c = self.config
        batch, frames = values.shape[:2]
        if values.shape[2:] != c.item_shape[1:]:
            raise ValueError(
                f"frames of (height, width, channels) {tuple(values.shape[2:])}, but the encoder takes "
                f"{c.item_shape[1:]}"
            )
        x = self.patch_embed(patches_of(values.reshape(batch * frames, *values.shape[2:]), c.patch_size))
        positions = self.position_embedding.astype(self.dtype)
        x, first = x + positions[1:], self.class_embedding.astype(self.dtype) + positions[0]
        if c.attention != "space":
            x = x.reshape(batch, frames, c.num_patches, c.width).swapaxes(1, 2) + self._times(frames)
            x = x.reshape(batch, c.num_patches * frames, c.width)
        first = jnp.broadcast_to(first, (x.shape[0], 1, c.width))
        x = constrain(jnp.concatenate([first, x], axis=1), "batch", None, "act_embed")

        def apply(params, x, cache):
            if c.attention == "divided":
                return self.block.apply({"params": params}, x, frames), cache
            return self.block.apply({"params": params}, x, cache=cache)

        x, _ = run_stack(apply, self.blocks, x, remat=self.remat)
        return {"last_hidden_state": self.post_norm(x)}

    def __call__(self, media: Media) -> Media:
        """Videos [B, I, frames, H, W, 3] -> features [B, I * N, D], each item's after the other's.

        Those of a video are the class token, if it is wanted, and the patches frame by frame; with attention
        "space" each frame has a class token of its own.
        """
        c, frames = self.config, media.values.shape[2]

        def encode(videos):
            x = self.run(videos)["last_hidden_state"]
            first = int(c.feature_strategy == "patches")
            if c.attention == "space":
                return x[:, first:].reshape(videos.shape[0], -1, c.width)
            patches = x[:, 1:].reshape(-1, c.num_patches, frames, c.width).swapaxes(1, 2)
            return jnp.concatenate([x[:, first:1], patches.reshape(x.shape[0], -1, c.width)], axis=1)

        return encode_each(media, encode)

    def create(self, values: jax.Array) -> dict[str, Any]:
        """Touches every parameter once: what `init` runs. values [B, frames, H, W, 3]."""
        return self.run(values)
