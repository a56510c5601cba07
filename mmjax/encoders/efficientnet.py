"""EfficientNet-Lite image encoder (Tan & Le, 2019; the Lite variants drop squeeze-excitation and use ReLU6).

Convolutions pad as TensorFlow's "SAME", as the published weights expect. Batch norm always applies its stored
statistics: the network is a frozen feature extractor here.
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
from mmjax.encoders.each import encode_each
from mmjax.nn.linear import fan_in_normal


@dataclasses.dataclass(frozen=True)
class EfficientNetStage:
    """A run of equal blocks.

    Attributes:
        kernel: side of the depthwise kernel.
        stride: of the first block; the others have 1.
        expand: how many times wider a block is inside.
        width: channels that a block gives.
        repeats: number of blocks.
    """

    kernel: int
    stride: int
    expand: int
    width: int
    repeats: int


LITE0_STAGES = (
    EfficientNetStage(3, 1, 1, 16, 1),
    EfficientNetStage(3, 2, 6, 24, 2),
    EfficientNetStage(5, 2, 6, 40, 2),
    EfficientNetStage(3, 2, 6, 80, 3),
    EfficientNetStage(5, 1, 6, 112, 3),
    EfficientNetStage(5, 2, 6, 192, 4),
    EfficientNetStage(3, 1, 6, 320, 1),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Sizes and options; the defaults are EfficientNet-Lite0.

    Attributes:
        image_size: pixels of a side as the images arrive.
        resolution: pixels of a side that the network works at; other images are resized to it, bicubically.
        stem_width, stages, head_width: channels of the first convolution, the stages, and the last one.
        norm_eps: epsilon of batch norm.
        pool: "global+2x2" gives 5 features an image, the mean over the whole image and over its 2 x 2
            quarters, each of the head's channels followed by those of every stage's output (the last layer
            forgets colour, the early ones have it); "none" gives the head's grid, row by row.
    """

    image_size: int = 224
    resolution: int = 224
    stem_width: int = 32
    stages: tuple[EfficientNetStage, ...] = LITE0_STAGES
    head_width: int = 1280
    norm_eps: float = 1e-3
    pool: str = "global+2x2"

    kind: ClassVar[str] = "efficientnet"

    def __post_init__(self):
        check_choice("efficientnet.pool", self.pool, ("global+2x2", "none"))
        for name in ("image_size", "resolution", "stem_width", "head_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"efficientnet.{name} must be at least 1, got {getattr(self, name)}")
        if not self.stages:
            raise ConfigError("efficientnet.stages must hold at least one stage")

    @property
    def feature_width(self) -> int:
        """Channels of a feature."""
        if self.pool == "none":
            return self.head_width
        return self.head_width + sum(stage.width for stage in self.stages)

    @property
    def grid_size(self) -> int:
        """Positions of a side behind the last stage."""
        size = -(-self.resolution // 2)
        for stage in self.stages:
            size = -(-size // stage.stride)
        return size

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image; every image is resized, so the arguments do not matter."""
        return 5 if self.pool == "global+2x2" else self.grid_size**2


class ConvNorm(nn.Module):
    """Convolution and batch norm: kernel [k, k, in (1 if depthwise), out], scale, bias, mean, var [out].

    The norm is folded into the kernel at each call, in float32: the kernel is far smaller than the image.
    `padding` is how many zeros are put on every side, if not as few as give ceil(size / stride); a depthwise
    convolution always has the latter.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    eps: float = 1e-3
    padding: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), out]."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, inputs, self.features)
        kernel_axes = ("patch", "patch", None, "feature")

        def vector(name, init):
            boxed = nn.with_logical_partitioning(init, ("feature",))
            return self.param(name, boxed, (self.features,)).astype(jnp.float32)

        init = nn.with_logical_partitioning(fan_in_normal(shape[:3]), kernel_axes)
        kernel = self.param("kernel", init, shape).astype(jnp.float32)
        factor = vector("scale", nn.initializers.ones)
        offset = vector("bias", nn.initializers.zeros)
        mean, var = vector("mean", nn.initializers.zeros), vector("var", nn.initializers.ones)
        factor = factor * jax.lax.rsqrt(var + self.eps)
        kernel = (kernel * factor).astype(self.dtype)
        offset = (offset - mean * factor).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            return depthwise(x, kernel, self.stride) + offset
        if self.kernel == self.stride == 1:
            return x @ kernel[0, 0] + offset
        padding = "SAME" if self.padding is None else ((self.padding, self.padding),) * 2
        return _convolve(x, kernel, self.stride, padding=padding) + offset


def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves each channel by itself with "SAME" padding.

    On a CPU as k * k shifted products, several times faster than XLA's grouped convolution there.

    Args:
        x: [B, H, W, D].
        kernel: [k, k, 1, D].

    Returns:
        [B, ceil(H / stride), ceil(W / stride), D].
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_sum(x, kernel, stride),
        default=lambda x, kernel: _convolve(x, kernel, stride, groups=x.shape[-1]),
    )


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1, padding="SAME") -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout, feature_group_count=groups
    )


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size = kernel.shape[0]
    out = [-(-length // stride) for length in x.shape[1:3]]
    missing = [
        max((count - 1) * stride + size - length, 0) for count, length in zip(out, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in missing), (0, 0)))
    reach = [(count - 1) * stride + 1 for count in out]
    return sum(
        x[:, row : row + reach[0] : stride, column : column + reach[1] : stride] * kernel[row, column, 0]
        for row in range(size)
        for column in range(size)
    )


def pool_matrix(count: int, length: int) -> np.ndarray:
    """float32 [count, length] that averages `length` positions into `count` nearly equal windows.

    Window i covers floor(i * length / count) to ceil((i + 1) * length / count), as torch's adaptive pooling.
    """
    matrix = np.zeros((count, length), np.float32)
    for index in range(count):
        start, stop = index * length // count, -(-(index + 1) * length // count)
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix


def pooled(x: jax.Array) -> jax.Array:
    """[B, H, W, D] -> [B, 5, D]: the mean, then the means of the 2 x 2 quarters, row by row."""
    rows, columns = (jnp.asarray(pool_matrix(2, length), x.dtype) for length in x.shape[1:3])
    quarters = jnp.einsum("ah,bw,nhwd->nabd", rows, columns, x).reshape(x.shape[0], 4, -1)
    return jnp.concatenate([x.mean((1, 2))[:, None], quarters], axis=1)


class InvertedResidual(nn.Module):
    """Widen, convolve depthwise, narrow (Sandler et al., 2018); with a residual where the shapes allow it."""

    stage: EfficientNetStage
    stride: int
    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        hidden = x.shape[-1] * self.stage.expand

        def conv(name, features, **options):
            return ConvNorm(features, eps=self.eps, dtype=self.dtype, name=name, **options)

        y = x
        if self.stage.expand != 1:
            y = jax.nn.relu6(conv("expand", hidden)(y))
        depth = conv("depthwise", hidden, kernel=self.stage.kernel, stride=self.stride, depthwise=True)
        y = conv("project", self.stage.width)(jax.nn.relu6(depth(y)))
        return x + y if self.stride == 1 and x.shape == y.shape else y


class EfficientNet(nn.Module):
    """Images to features. Parameters stem, block_0 ... block_{n-1} (over all stages) and head.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: taken for the sake of one signature; nothing is recomputed, as nothing here is trained.
    """

    config: EfficientNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def features(self, images: jax.Array) -> jax.Array:
        """Normalised images [B, H, W, 3] -> [B, N, D], see `EfficientNetConfig.pool`."""
        c = self.config
        size = (images.shape[0], c.resolution, c.resolution, images.shape[-1])
        if images.shape != size:
            images = jax.image.resize(images.astype(jnp.float32), size, "bicubic")
        stem = ConvNorm(c.stem_width, 3, 2, eps=c.norm_eps, dtype=self.dtype, name="stem")
        x = jax.nn.relu6(stem(constrain(images, "batch", None, None, None)))
        found, number = [], 0
        for stage in c.stages:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                x = InvertedResidual(stage, stride, c.norm_eps, self.dtype, name=f"block_{number}")(x)
                number += 1
            found.append(x)
        head = ConvNorm(c.head_width, eps=c.norm_eps, dtype=self.dtype, name="head")
        x = jax.nn.relu6(head(x))
        if c.pool == "none":
            return x.reshape(x.shape[0], math.prod(x.shape[1:3]), x.shape[-1])
        return jnp.concatenate([pooled(part) for part in (x, *found)], axis=-1)

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, D]."""
        return encode_each(media, self.features)

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        return self.features(images)
