"""The encoder of Whisper: log-mel frames through two convolutions and pre-norm blocks.

Radford et al., 2022, "Robust speech recognition via large-scale weak supervision". The audio towers of many speech
language models (SALMONN, Qwen-Audio, ...) are this one.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.each import encode_each
from mmjax.encoders.key_bias import with_key_bias, without_key_bias
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# The convolutions: frames of a window, and from one window to the next of the first and of the second.
WINDOW, STRIDES = 3, (1, 2)


@dataclasses.dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes and options of Whisper's encoder.

    Attributes:
        num_mels: bands of the spectrogram.
        max_positions: N, tokens of one item; it has twice as many frames.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        activation, norm_eps: of the blocks; the convolutions always have the exact GELU.
    """

    num_mels: int
    max_positions: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "gelu"
    norm_eps: float = 1e-5

    kind: ClassVar[str] = "whisper"

    def __post_init__(self):
        check_activation("whisper.activation", self.activation)
        if self.width % self.num_heads:
            raise ConfigError(f"whisper.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.width % 2 or self.width < 4:
            raise ConfigError(f"whisper.width must be even and at least 4 for sine positions, got {self.width}")
        for name in ("num_mels", "max_positions", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"whisper.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (frames, mel)."""
        return (self.max_positions * STRIDES[1], self.num_mels)

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
        """Features of one item; neither argument matters, since every item is filled up to one length."""
        return self.max_positions


def sine_positions(length: int, width: int) -> np.ndarray:
    """float32 [length, width]: sines, then cosines, of wavelengths from 2 pi to 20000 pi in a geometric row."""
    rates = np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def windows_of(x: jax.Array, stride: int) -> jax.Array:
    """[B, T, C] -> [B, ceil(T / stride), WINDOW, C]: each place with its neighbours, zeros beyond both ends."""
    count = -(-x.shape[1] // stride)
    x = jnp.pad(x, ((0, 0), (WINDOW // 2, WINDOW // 2), (0, 0)))
    last = (count - 1) * stride + 1
    return jnp.stack([x[:, first : first + last : stride] for first in range(WINDOW)], axis=2)


class WhisperEncoder(nn.Module):
    """Log-mel frames to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Parameters conv_1, conv_2 {kernel [WINDOW, C, D], bias}, position_embedding [N, D], blocks/... as in `Block`
    without attn/k/bias, final_norm. Positions are sines in fresh params and otherwise the checkpoint's; no
    gradient reaches them.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: WhisperEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        conv = lambda: Linear((c.width,), ("patch", None, "embed"), in_dims=2, use_bias=True, dtype=self.dtype)
        self.conv_1, self.conv_2 = conv(), conv()
        sines = lambda rng, shape: jnp.asarray(sine_positions(*shape))
        positions = nn.with_logical_partitioning(sines, (None, "embed"))
        self.position_embedding = self.param("position_embedding", positions, (c.max_positions, c.width))
        self.final_norm = LayerNorm(c.norm_eps, self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            init = init_stack(self.block, c.num_layers, jnp.zeros((1, 1, c.width), self.dtype))
            self.blocks = self.param("blocks", lambda rng: without_key_bias(init(rng)))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """The whole encoder on spectrograms.

        Args:
            values: log-mel frames [B, 2 * N, mel], filled up with what silence becomes.

        Returns:
            "last_hidden_state" [B, N, D], normed.

        Raises:
            ValueError: another number of frames or bands.
        """
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(
                f"spectrograms of {values.shape[1]} frames x {values.shape[2]} bands, but the encoder takes "
                f"{c.item_shape[0]} x {c.item_shape[1]}: sound has to be cut or filled up to that length"
            )
        gelu, x = ACTIVATIONS["gelu"], values
        for conv, stride in zip((self.conv_1, self.conv_2), STRIDES, strict=True):
            x = gelu(conv(windows_of(x, stride)))
        x = x + jax.lax.stop_gradient(self.position_embedding).astype(self.dtype)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": with_key_bias(params)}, x, cache=cache)

        x, _ = run_stack(apply, self.blocks, x, remat=self.remat)
        return {"last_hidden_state": self.final_norm(x)}

    def __call__(self, media: Media) -> Media:
        """Spectrograms [B, I, 2 * N, mel] -> features [B, I * N, D], each item's after the other's."""
        return encode_each(media, lambda values: self.run(values)["last_hidden_state"])

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, 2 * N, mel]."""
        return self.run(values)
