"""wav2vec 2.0 and HuBERT: samples through strided convolutions, then transformer blocks over the frames.

| family | options beside the sizes |
|---|---|
| wav2vec 2.0, HuBERT, base | the defaults |
| wav2vec 2.0, HuBERT, large | conv_norm "layer", pre_norm ("stable layer norm"); conv_bias in wav2vec 2.0 |
| some HuBERT | no projection_norm, or position_norm "batch" |

Baevski et al., 2020 (wav2vec 2.0); Hsu et al., 2021 (HuBERT).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.waveform import POSITION_NORMS, ConvPositions, FrameConv, frames_of
from mmjax.nn.block import BlockConfig
from mmjax.nn.cross_block import CrossBlock
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes and options of a transformer over samples.

    Attributes:
        num_samples: of one item; shorter sound is filled up.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        conv_widths, conv_kernels, conv_strides: channels out, frames of a window and from one window to the next of
            each convolution.
        conv_bias: whether these have biases.
        conv_norm: "channel", the first convolution's channels over time; "layer", every convolution's frames over
            their channels.
        conv_activation: of these convolutions and of that of the positions.
        projection_norm: whether there is a norm between the convolutions and the map to D.
        position_kernel, position_groups, position_norm: of the convolution that gives positions, see
            `ConvPositions`.
        pre_norm: whether the halves of blocks have their norms before them, and a norm stands behind all blocks,
            not after each sum, and before all blocks.
        activation, norm_eps: of the blocks.
        mask_token: whether there is a learned vector that stands in for masked frames, see `run`.
    """

    num_samples: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "channel"
    conv_activation: str = "gelu"
    projection_norm: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    position_norm: str = "weight"
    pre_norm: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-5
    mask_token: bool = False

    kind: ClassVar[str] = "wav2vec2"

    def __post_init__(self):
        check_activation("wav2vec2.activation", self.activation)
        check_activation("wav2vec2.conv_activation", self.conv_activation)
        check_choice("wav2vec2.conv_norm", self.conv_norm, ("channel", "layer"))
        check_choice("wav2vec2.position_norm", self.position_norm, POSITION_NORMS)
        counts = {name: len(getattr(self, name)) for name in ("conv_widths", "conv_kernels", "conv_strides")}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            found = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ConfigError(f"wav2vec2: options of the convolutions must be as many and at least one: {found}")
        for name in ("num_layers", "position_kernel", "position_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"wav2vec2.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_heads", "position_groups"):
            if self.width % getattr(self, name):
                raise ConfigError(f"wav2vec2.width {self.width} is not a multiple of {name} {getattr(self, name)}")
        for name in ("conv_widths", "conv_kernels", "conv_strides"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"wav2vec2.{name} must be at least 1 each, got {getattr(self, name)}")
        if self.num_samples < self.reach:
            raise ConfigError(
                f"wav2vec2.num_samples {self.num_samples} is less than the {self.reach} samples that one frame is of"
            )

    @property
    def reach(self) -> int:
        """Samples that a frame is made of: the fewest that give one."""
        reach = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            reach = (reach - 1) * stride + kernel
        return reach

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (samples,)."""
        return (self.num_samples,)

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

    def frames(self, samples):
        """Frames that come of `samples`, an int or an int array."""
        return frames_of(samples, self.conv_kernels, self.conv_strides)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item, padding included; neither argument matters, since every item has one length."""
        return self.frames(self.num_samples)


class Wav2Vec2(nn.Module):
    """Samples to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Parameters conv_{i}, see `FrameConv`; projection_norm; projection {kernel [C, D], bias}; mask_embedding [D];
    positions, see `ConvPositions`; norm; blocks/... as in `CrossBlock`.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: Wav2Vec2Config
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c, dtype = self.config, self.dtype
        later = "layer" if c.conv_norm == "layer" else "none"
        sizes = zip(c.conv_widths, c.conv_kernels, c.conv_strides, strict=True)
        self.conv = [
            FrameConv(*size, c.conv_activation, later if number else c.conv_norm, c.conv_bias, dtype)
            for number, size in enumerate(sizes)
        ]
        if c.projection_norm:
            self.projection_norm = LayerNorm(c.norm_eps, dtype)
        self.projection = Linear((c.width,), (None, "embed"), use_bias=True, dtype=dtype)
        if c.mask_token:
            init = nn.with_logical_partitioning(nn.initializers.uniform(1.0), ("embed",))
            self.mask_embedding = self.param("mask_embedding", init, (c.width,))
        size = c.position_kernel, c.position_groups
        self.positions = ConvPositions(*size, c.conv_activation, c.position_norm, dtype)
        self.norm = LayerNorm(c.norm_eps, dtype)
        self.block = CrossBlock(c.block, not c.pre_norm, dtype=dtype, parent=None)
        if self.is_initializing():
            init = init_stack(self.block, c.num_layers, jnp.zeros((1, 1, c.width), dtype))
            self.blocks = self.param("blocks", init)
        else:
            self.blocks = self.get_variable("params", "blocks")

    def run(
        self, values: jax.Array, mask: jax.Array | None = None, masked: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The whole encoder on sound of any one length.

        Args:
            values: samples [B, S], at least `config.reach` of them.
            mask: [B, S], 0 is padding, which stands on the right; None: there is none. In a row with too few samples
                for a frame no frame is seen, and what comes of it means nothing.
            masked: bool [B, N], frames whose place the learned vector takes (masked prediction).

        Returns:
            "last_hidden_state" [B, N, D]; "extract_features" [B, N, C], what the convolutions give, normed where
            there is a norm; "seen" bool [B, N], frames that are of no padding.

        Raises:
            ValueError: too few samples; masked frames without a mask_token.
        """
        c = self.config
        if values.ndim != 2 or values.shape[1] < c.reach:
            raise ValueError(f"sound of shape {tuple(values.shape)}, but one frame is of {c.reach} samples: [B, S]")
        x = constrain(values[..., None], "batch", None, None)
        for conv in self.conv:
            x = conv(x)
        features = self.projection_norm(x) if c.projection_norm else x
        x = self.projection(features)
        if masked is not None:
            if not c.mask_token:
                raise ValueError("masked frames need an encoder with mask_token")
            x = jnp.where(masked[..., None], self.mask_embedding.astype(self.dtype), x)
        seen, visible = jnp.ones(x.shape[:2], bool), None
        if mask is not None:
            seen = jnp.arange(x.shape[1]) < c.frames(jnp.sum(mask, axis=1, dtype=jnp.int32))[:, None]
            visible, x = seen[:, None], jnp.where(seen[..., None], x, 0)
        x = constrain(x + self.positions(x), "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": params}, x, mask=visible, cache=cache)

        if c.pre_norm:
            x = self.norm(run_stack(apply, self.blocks, x, remat=self.remat)[0])
        else:
            x, _ = run_stack(apply, self.blocks, self.norm(x), remat=self.remat)
        return {"last_hidden_state": x, "extract_features": features, "seen": seen}

    def __call__(self, media: Media) -> Media:
        """Samples [B, I, S] -> features [B, I * N, D], each item's after the other's.

        Where there is a `grid`, its first number is how many samples of an item are sound; frames beyond are not
        seen and become padding (segment 0).

        Raises:
            ValueError: another number of samples than `num_samples`, whose features would not be as many as planned.
        """
        if media.values.shape[2:] != self.config.item_shape:
            raise ValueError(
                f"sound of {media.values.shape[2:]} samples for an encoder whose features are counted for "
                f"{self.config.item_shape}"
            )
        batch, items, samples = media.values.shape
        mask, segments = None, media.segment_ids
        if media.grid is not None:
            mask = jnp.arange(samples) < jnp.asarray(media.grid)[..., :1]
            mask = mask.reshape(batch * items, samples)
            segments = jnp.ones((batch, items), jnp.int32) * jnp.arange(1, items + 1) if segments is None else segments
        out = self.run(media.values.reshape(batch * items, samples), mask)
        x = out["last_hidden_state"]
        if segments is not None:
            seen = out["seen"].reshape(batch, items * x.shape[1])
            segments = jnp.where(seen, jnp.repeat(jnp.asarray(segments), x.shape[1], axis=1), 0)
        return media.replace(values=x.reshape(batch, -1, x.shape[2]), segment_ids=segments, stage="encoded")

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, S]."""
        return self.run(values)
