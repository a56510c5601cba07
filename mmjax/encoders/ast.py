"""The audio spectrogram transformer: a vision transformer over overlapping patches of log-mel frames.

Gong, Chung & Glass, 2021, "AST: Audio Spectrogram Transformer". Like DeiT (Touvron et al., 2021), from whose weights it
starts, it has a class and a distillation token.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.each import encode_each
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# Tokens before the patches: class and distillation.
NUM_LEADING = 2


@dataclasses.dataclass(frozen=True)
class ASTConfig:
    """Sizes and options of an audio spectrogram transformer.

    Attributes:
        num_frames, num_mels: of one item.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        patch_size: frames and bands of a patch.
        frequency_stride, time_stride: bands and frames from one patch to the next; what no whole patch covers is
            dropped.
        activation, norm_eps: of the blocks.
        qkv_bias: whether q, k and v have biases.
        feature_strategy: "full", or "patches": without the class and distillation tokens.
    """

    num_frames: int
    num_mels: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    patch_size: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    activation: str = "gelu"
    norm_eps: float = 1e-12
    qkv_bias: bool = True
    feature_strategy: str = "full"

    kind: ClassVar[str] = "ast"

    def __post_init__(self):
        check_activation("ast.activation", self.activation)
        check_choice("ast.feature_strategy", self.feature_strategy, ("full", "patches"))
        if self.width % self.num_heads:
            raise ConfigError(f"ast.width {self.width} is not a multiple of num_heads {self.num_heads}")
        for name in ("patch_size", "frequency_stride", "time_stride", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ast.{name} must be at least 1, got {getattr(self, name)}")
        if min(self.num_frames, self.num_mels) < self.patch_size:
            raise ConfigError(
                f"ast.num_frames {self.num_frames} and num_mels {self.num_mels} must be at least patch_size "
                f"{self.patch_size}"
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along frequency and along time."""
        return (
            (self.num_mels - self.patch_size) // self.frequency_stride + 1,
            (self.num_frames - self.patch_size) // self.time_stride + 1,
        )

    @property
    def num_patches(self) -> int:
        """P: patches of one item."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def num_dropped(self) -> int:
        """How many tokens from the first on the features leave out."""
        return NUM_LEADING if self.feature_strategy == "patches" else 0

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (frames, mel)."""
        return (self.num_frames, self.num_mels)

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
        return self.num_patches + NUM_LEADING - self.num_dropped


def overlapping_patches(values: jax.Array, config: ASTConfig) -> jax.Array:
    """[B, frames, mel] -> [B, P, size (bands), size (frames), 1], all times of the lowest patches first."""
    rows, columns = config.grid_size
    inside = np.arange(config.patch_size)
    bands = np.arange(rows)[:, None] * config.frequency_stride + inside
    frames = np.arange(columns)[:, None] * config.time_stride + inside
    patches = values[:, frames][..., bands]
    # [B, columns, size (frames), rows, size (bands)].
    patches = patches.transpose(0, 3, 1, 4, 2)
    return patches.reshape(values.shape[0], rows * columns, config.patch_size, config.patch_size, 1)


class AST(nn.Module):
    """Log-mel frames to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: ASTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed",))
        positions = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        axes = ("patch", "patch", None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=3, use_bias=True, dtype=self.dtype)
        self.class_embedding = self.param("class_embedding", embed, (c.width,))
        self.distillation_embedding = self.param("distillation_embedding", embed, (c.width,))
        self.position_embedding = self.param("position_embedding", positions, (c.num_patches + NUM_LEADING, c.width))
        self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """The whole tower on spectrograms.

        Args:
            values: log-mel frames [B, frames, mel].

        Returns:
            "last_hidden_state" [B, 2 + P, D], normed; "pooled" [B, D], the mean of its first two tokens.

        Raises:
            ValueError: another number of frames or bands.
        """
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(
                f"spectrograms of {values.shape[1]} frames x {values.shape[2]} bands, but the encoder takes "
                f"{c.item_shape[0]} x {c.item_shape[1]}"
            )
        x = self.patch_embed(overlapping_patches(values, c))
        leading = jnp.stack([self.class_embedding, self.distillation_embedding]).astype(self.dtype)
        leading = jnp.broadcast_to(leading, (x.shape[0], *leading.shape))
        x = jnp.concatenate([leading, x], axis=1) + self.position_embedding.astype(self.dtype)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": params}, x, cache=cache)

        x, _ = run_stack(apply, self.blocks, x, remat=self.remat)
        x = self.post_norm(x)
        return {"last_hidden_state": x, "pooled": (x[:, 0] + x[:, 1]) / 2}

    def __call__(self, media: Media) -> Media:
        """Spectrograms [B, I, frames, mel] -> features [B, I * N, D], each item's after the other's."""
        return encode_each(media, lambda values: self.run(values)["last_hidden_state"][:, self.config.num_dropped :])

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, frames, mel]."""
        return self.run(values)
