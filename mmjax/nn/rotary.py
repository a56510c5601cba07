"""Rotary position embedding (Su et al., 2021) with the frequency scalings that published checkpoints use.

Frequencies are computed in numpy at trace time; angles in float32. The two halves of a head are rotated
against each other ("half-split"), the layout of most checkpoints in transformers format, or neighbouring
channels ("interleaved", GPT-J's). A head may be rotated in its first channels only.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice

TYPES = ("linear", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of pre-training.

    Attributes:
        type: "linear" (Chen et al., 2023), "llama3" (Llama 3.1), "yarn" (Peng et al., 2023) or "longrope"
            (Ding et al., 2024).
        factor: how many times longer the context becomes.
        original_max_positions: positions seen in pre-training; needed by all but linear.
        low_freq_factor, high_freq_factor: llama3's two wavelength bounds.
        beta_fast, beta_slow: yarn's bounds in rotations.
        attention_factor: yarn's and longrope's scale on cos and sin; None derives it from `factor`.
        mscale, mscale_all_dim: yarn's other way to give that scale (DeepSeek); None where not used.
        truncate: whether yarn's bounds are rounded to whole channels.
        short_factor, long_factor: longrope's divisor of each channel pair's frequency, in texts that fit into
            `original_max_positions` and in longer ones.
    """

    type: str
    factor: float
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self):
        check_choice("rope_scaling.type", self.type, TYPES)
        pairs = {len(self.short_factor), len(self.long_factor)}
        if (self.type == "longrope") != (0 not in pairs) or len(pairs) > 1:
            raise ConfigError(
                "rope_scaling.short_factor and long_factor are for type 'longrope', one number a channel pair; "
                f"type {self.type!r} has {len(self.short_factor)} and {len(self.long_factor)}"
            )
        if self.factor < 1:
            raise ConfigError(f"rope_scaling.factor must be at least 1, got {self.factor}")
        if self.type != "linear" and not self.original_max_positions:
            raise ConfigError(f"rope_scaling of type {self.type!r} needs original_max_positions")


def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None, long: bool = False
) -> tuple[np.ndarray, float]:
    """Rotation per position of each channel pair; `long` for texts beyond longrope's original positions.

    Returns:
        float32 [C / 2] in radians, and the factor that cos and sin are multiplied by.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    base = (1.0 / theta**exponents).astype(np.float32)
    if scaling is None:
        return base, 1.0
    if scaling.type == "linear":
        return base / np.float32(scaling.factor), 1.0
    if scaling.type == "llama3":
        return _llama3(base, scaling), 1.0
    if scaling.type == "longrope":
        divisors = np.asarray(scaling.long_factor if long else scaling.short_factor, np.float32)
        factor = scaling.attention_factor
        if factor is None:
            factor = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_positions))
        return base / divisors, factor
    return _yarn(base, head_dim, theta, scaling)


def _llama3(base: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    wavelength = 2 * math.pi / base
    longest = scaling.original_max_positions / scaling.low_freq_factor
    shortest = scaling.original_max_positions / scaling.high_freq_factor
    blend = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    stretched = base / scaling.factor
    between = (1 - blend) * stretched + blend * base
    return np.where(wavelength > longest, stretched, np.where(wavelength < shortest, base, between)).astype(
        np.float32
    )


def _yarn(base: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    def channel_of(rotations: float) -> float:
        return (
            head_dim
            * math.log(scaling.original_max_positions / (rotations * 2 * math.pi))
            / (2 * math.log(theta))
        )

    def magnitude(scale: float, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0

    low, high = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    stretch = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    scaled = base / scaling.factor * stretch + base * (1 - stretch)
    factor = scaling.attention_factor
    if factor is None:
        if scaling.mscale and scaling.mscale_all_dim:
            factor = magnitude(scaling.factor, scaling.mscale) / magnitude(
                scaling.factor, scaling.mscale_all_dim
            )
        else:
            factor = magnitude(scaling.factor)
    return scaled.astype(np.float32), float(factor)


def axis_of_frequency(sections: tuple[int, ...], interleaved: bool = False) -> np.ndarray:
    """int [C / 2]: which axis of a position turns each channel pair (Wang et al., 2024, "Qwen2-VL").

    Args:
        sections: pairs of each axis (time, height, width), of C / 2 together.
        interleaved: the axes take turns, from the fastest pair on, as long as height and width have any left
            (Qwen3-VL); else each axis has a run of its own.
    """
    if not interleaved:
        return np.repeat(np.arange(len(sections)), sections)
    axes = np.zeros(sum(sections), np.int64)
    for axis in range(1, len(sections)):
        axes[axis : len(sections) * sections[axis] : len(sections)] = axis
    return axes


def rotation(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    axes: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, C / 2] each, for integer positions [B, T], or [B, T, A] with `axes`.

    `axes` says which of the A axes each channel pair reads, see `axis_of_frequency`. Longrope's frequencies are
    those of the longest position in the row; a generation that grows beyond the original positions goes on with
    keys that were rotated before.
    """
    per_position, factor = frequencies(head_dim, theta, scaling)
    if scaling is not None and scaling.type == "longrope":
        is_long = jnp.max(positions, axis=1) >= scaling.original_max_positions
        far, _ = frequencies(head_dim, theta, scaling, long=True)
        per_position = jnp.where(is_long[:, None, None], far, per_position)
    positions = positions.astype(jnp.float32)
    positions = positions[..., None] if positions.ndim == 2 else positions[..., axes]
    angles = positions * per_position
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False) -> jax.Array:
    """Rotates the first R channels of heads x [B, T, H, C] by cos and sin [B, T, R / 2]; result in x's dtype.

    Channel i turns against i + R / 2, or with `interleaved` channel 2 i against 2 i + 1.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        turned = rotate(x[..., :width], cos, sin, interleaved)
        return jnp.concatenate([turned, x[..., width:]], axis=-1)
    if interleaved:
        pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
        cos, sin = cos[:, :, None, :, None], jnp.stack([-sin, sin], axis=-1)[:, :, None]
        return (pairs * cos + pairs[..., ::-1] * sin).reshape(x.shape).astype(x.dtype)
    # The halves are swapped by reversing an axis of two, not split and joined: XLA makes vector code of that.
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    cos, sin = cos[:, :, None, None, :], jnp.stack([-sin, sin], axis=-2)[:, :, None]
    return (halves * cos + halves[..., ::-1, :] * sin).reshape(x.shape).astype(x.dtype)
