"""CLAP's audio tower, HTSAT: a Swin transformer over a spectrogram that is folded into a square image.

Chen et al., 2022, "HTS-AT"; Wu et al., 2023 ("LAION-CLAP"), whose feature fusion mixes the whole of a long sound,
shrunk, with three cuts of it (attentional fusion, Dai et al., 2021).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.each import encode_each
from mmjax.encoders.swin import MAP_NORM_EPS, Swin, SwinConfig
from mmjax.nn.batch_norm import FixedBatchNorm
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm

# Views of one sound where there is fusion: the whole, then three cuts, whose patches are three times as long.
VIEWS, STRETCH = 4, 3
# In `extra_features`: bool [B, I], which sounds were longer than one cut.
LONGER = "is_longer"


@dataclasses.dataclass(frozen=True)
class CLAPConfig:
    """Sizes and options of the tower.

    Attributes:
        num_frames, num_mels: of one view; they are stretched to what the image needs.
        image_size: pixels of a side of the image that a spectrogram is folded into.
        patch_size, patch_stride: pixels of a side of a patch, and from one patch to the next.
        width, depths, num_heads, window_size, mlp_ratio, activation, norm_eps, qkv_bias: see `SwinConfig`.
        patch_norm: whether embedded patches are normed.
        fusion: whether an item is four views, see `run`.
        fusion_reduction: how many times narrower the maps inside the fusion are.
        projection_dim: width of the vector compared with text's, or None without it.
        projection_activation: between the two maps to it.
    """

    num_frames: int = 1001
    num_mels: int = 64
    image_size: int = 256
    patch_size: int = 4
    patch_stride: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    qkv_bias: bool = True
    patch_norm: bool = True
    fusion: bool = False
    fusion_reduction: int = 4
    projection_dim: int | None = None
    projection_activation: str = "relu"

    kind: ClassVar[str] = "clap_audio"

    def __post_init__(self):
        check_activation("clap_audio.projection_activation", self.projection_activation)
        swin, folds = self.swin, self.folds
        if not 1 <= self.num_mels <= self.image_size or self.image_size % folds:
            raise ConfigError(
                f"clap_audio.num_mels {self.num_mels}: image_size {self.image_size} must be at least that, and a "
                f"multiple of how often it holds them, {folds}"
            )
        if not 1 <= self.num_frames <= self.image_size * folds:
            raise ConfigError(
                f"clap_audio.num_frames {self.num_frames} must be in 1..{self.image_size * folds}, what the image holds"
            )
        if self.patch_size < self.patch_stride or (self.patch_size - self.patch_stride) % 2:
            raise ConfigError(
                f"clap_audio.patch_size {self.patch_size} must be patch_stride {self.patch_stride} or an even number "
                "more, so that patches reach as far beyond their place on every side"
            )
        halved = self.patch_stride * 2 ** (len(self.depths) - 1)
        if self.image_size % halved or swin.grid_sizes[-1] % folds:
            raise ConfigError(
                f"clap_audio.image_size {self.image_size} must be a multiple of {halved}, its quotient one of {folds}, "
                "so that the last map unfolds"
            )
        if self.fusion and not 1 <= self.fusion_reduction <= self.width:
            raise ConfigError(
                f"clap_audio.fusion_reduction must be in 1..width {self.width}, got {self.fusion_reduction}"
            )

    @property
    def swin(self) -> SwinConfig:
        """The config of the blocks."""
        return SwinConfig(
            image_size=self.image_size,
            patch_size=self.patch_stride,
            width=self.width,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            norm_eps=self.norm_eps,
            qkv_bias=self.qkv_bias,
        )

    @property
    def folds(self) -> int:
        """Pieces that a spectrogram is cut into along time, which then stand one above the other."""
        return self.image_size // max(self.num_mels, 1)

    @property
    def views(self) -> int:
        """Spectrograms of one item."""
        return VIEWS if self.fusion else 1

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.swin.feature_width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (views, frames, mel)."""
        return (self.views, self.num_frames, self.num_mels)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item; neither argument matters, since every item has one size."""
        return self.swin.num_tokens()


def stretch_matrix(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: cubic convolution between ends that stay ends (Keys, 1981; a = -0.75 as in torch).

    The identity where the sizes are equal.
    """
    matrix = np.zeros((target, source))
    for row in range(target):
        place = row * (source - 1) / max(target - 1, 1)
        first = int(np.floor(place))
        for at in range(first - 1, first + 3):
            x = abs(place - at)
            near, far = (1.25 * x - 2.25) * x**2 + 1, -0.75 * (((x - 5) * x + 8) * x - 4)
            # Places beyond the edge count as the one at the edge.
            matrix[row, min(max(at, 0), source - 1)] += near if x <= 1 else far if x < 2 else 0.0
    return matrix.astype(np.float32)


def fold(mel: jax.Array, config: CLAPConfig) -> jax.Array:
    """Spectrograms [B, views, T, mel] -> images [B, side, side, views].

    Time is cut into `folds` pieces; each lies on its side, lowest band first, below the piece before.
    """
    side, folds = config.image_size, config.folds
    frames, bands = stretch_matrix(mel.shape[2], side * folds), stretch_matrix(mel.shape[3], side // folds)
    mel = jnp.einsum("Tt,bvtm,Mm->bvTM", frames, mel.astype(jnp.float32), bands, precision="highest")
    mel = mel.reshape(*mel.shape[:2], folds, side, side // folds).transpose(0, 2, 4, 3, 1)
    return mel.reshape(-1, side, side, mel.shape[-1])


def unfold(x: jax.Array, folds: int) -> jax.Array:
    """A map [B, h, w, D] of a folded image -> [B, h / folds, folds * w, D]: frequency, then all of time."""
    batch, height, breadth, width = x.shape
    x = x.reshape(batch, folds, height // folds, breadth, width).transpose(0, 2, 1, 3, 4)
    return x.reshape(batch, height // folds, folds * breadth, width)


def overlapping_patches(images: jax.Array, config: CLAPConfig, stretch: int = 1) -> jax.Array:
    """[B, H, W] -> [B, rows, columns, patch size, patch size * stretch, 1], with zeros beyond the image.

    `stretch` is how many times longer patches and their stride are along the second axis.
    """
    size, stride = config.patch_size, config.patch_stride
    edge = (size - stride) // 2
    images = jnp.pad(images, ((0, 0), (edge, edge), (edge, edge)))

    def places(length, times):
        count = (length - size * times) // (stride * times) + 1
        return np.arange(count)[:, None] * stride * times + np.arange(size * times)

    rows, columns = places(images.shape[1], 1), places(images.shape[2], stretch)
    return images[:, rows[:, None, :, None], columns[None, :, None, :], None]


class Gate(nn.Module):
    """Two maps with fixed batch norms, an activation between them. Parameters fc1, norm_1, fc2, norm_2."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> the same shape."""

        def linear(features, axes, name):
            return Linear((features,), axes, use_bias=True, dtype=self.dtype, name=name)

        h = linear(self.hidden, ("embed", "feature"), "fc1")(x)
        h = jax.nn.relu(FixedBatchNorm(dtype=self.dtype, name="norm_1")(h))
        h = linear(x.shape[-1], ("feature", "embed"), "fc2")(h)
        return FixedBatchNorm(dtype=self.dtype, name="norm_2")(h)


class CLAP(nn.Module):
    """Spectrograms to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Parameters mel_norm; patch_embed {kernel [h, w, 1, D], bias}, patch_norm; with fusion cut_embed, gate_place and
    gate_whole, see `Gate`; swin/..., the stages and merges of `Swin`; norm; projection_1, projection_2.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: CLAPConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        # In float32: decibels are large numbers with small differences.
        self.mel_norm = FixedBatchNorm()
        axes = ("patch", "patch", None, "embed")
        patch = lambda: Linear((c.width,), axes, in_dims=3, use_bias=True, dtype=self.dtype)
        self.patch_embed = patch()
        if c.patch_norm:
            self.patch_norm = LayerNorm(MAP_NORM_EPS, self.dtype)
        if c.fusion:
            self.cut_embed = patch()
            hidden = c.width // c.fusion_reduction
            self.gate_place, self.gate_whole = Gate(hidden, self.dtype), Gate(hidden, self.dtype)
        self.swin = Swin(c.swin, self.dtype, self.remat)
        self.norm = LayerNorm(MAP_NORM_EPS, self.dtype)
        if c.projection_dim:
            linear = lambda axes: Linear((c.projection_dim,), axes, use_bias=True, dtype=self.dtype)
            self.projection_1, self.projection_2 = linear(("embed", "feature")), linear(("feature", None))

    def run(self, values: jax.Array, longer: jax.Array | None = None) -> dict[str, jax.Array]:
        """The whole tower on spectrograms.

        Args:
            values: decibels in mel bands [B, views, T, mel]; with fusion the whole sound, shrunk to one cut's length,
                then three cuts.
            longer: bool [B], with fusion: which sounds the cuts are mixed in of. None: of none.

        Returns:
            "last_hidden_state" [B, N, D], the lowest frequencies first, each at all times; "pooled" [B, D], the mean;
            "embeds" [B, projection_dim], not normalised.

        Raises:
            ValueError: another shape than the config's; `longer` without fusion.
        """
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(
                f"spectrograms of (views, frames, bands) {values.shape[1:]}, but the encoder takes {c.item_shape}"
            )
        if longer is not None and not c.fusion:
            raise ValueError("longer needs an encoder with fusion")
        images = fold(self.mel_norm(values), c)
        x = self.patch_embed(overlapping_patches(images[..., 0], c))
        if c.fusion:
            fused = self._fused(x, images[..., 1:])
            longer = jnp.zeros(len(x), bool) if longer is None else jnp.asarray(longer).reshape(-1) > 0
            x = jnp.where(longer[:, None, None, None], fused, x)
        if c.patch_norm:
            x = self.patch_norm(x)
        x = unfold(self.norm(self.swin.stages(x)[-1]), c.folds)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        out = {"last_hidden_state": x, "pooled": x.astype(jnp.float32).mean(1).astype(self.dtype)}
        if c.projection_dim:
            h = ACTIVATIONS[c.projection_activation](self.projection_1(out["pooled"]))
            out["embeds"] = self.projection_2(h)
        return out

    def _fused(self, whole: jax.Array, cuts: jax.Array) -> jax.Array:
        """The whole's patches [B, h, w, D] mixed with those of cuts [B, H, W, 3], which stand side by side."""
        batch, height, breadth, width = whole.shape
        cuts = cuts.transpose(0, 3, 1, 2).reshape(-1, *cuts.shape[1:3])
        x = self.cut_embed(overlapping_patches(cuts, self.config, STRETCH))
        x = x.reshape(batch, -1, *x.shape[1:]).transpose(0, 2, 1, 3, 4).reshape(batch, height, -1, width)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, breadth - x.shape[2]), (0, 0)))
        both = whole + x
        mean = both.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        share = jax.nn.sigmoid(self.gate_place(both) + self.gate_whole(mean))
        return 2 * whole * share + 2 * x * (1 - share)

    def __call__(self, media: Media) -> Media:
        """Spectrograms [B, I, views, T, mel] -> features [B, I * N, D], each item's after the other's.

        With fusion, `extra_features[LONGER]` says which sounds are longer than one cut.
        """
        longer = (media.extra_features or {}).get(LONGER) if self.config.fusion else None
        return encode_each(media, lambda values: self.run(values, longer)["last_hidden_state"])

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, views, T, mel]."""
        return self.run(values)
