"""Masks from an image's map and prompts: SAM's mask decoder (Kirillov et al., 2023, "Segment anything").

A prompt may also be an embedding from outside, such as the hidden state of a language model's token for "segment this",
mapped to the decoder's width (Lai et al., 2024, "LISA").
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.generators.mask_prompts import PromptEncoder
from mmjax.generators.part_model import PartModel
from mmjax.generators.two_way import TwoWayBlock, attention, read
from mmjax.nn.linear import Linear, fan_in_normal
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.resize import resize
from mmjax.nn.stack import init_stack, run_stack

# Of the norms behind the last attention and between the two steps up.
LAST_NORM_EPS, UPSCALE_NORM_EPS = 1e-5, 1e-6
# Layers of the MLPs that make a mask's weights of its token.
HYPER_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes and options of a mask decoder and its prompts.

    Attributes:
        width: D, channels of the image's map too.
        image_size: pixels of a side, in which prompts are counted.
        grid_size: places of a side of the image's map; masks are four times as large.
        num_layers, num_heads, mlp_width: of the two-way transformer.
        attention_reduction: attention between tokens and image has D / this channels.
        num_masks: masks of an ambiguous prompt; one more is for prompts that are clear.
        iou_depth, iou_width: layers and hidden width of what predicts each mask's overlap with the truth.
        activation, norm_eps: of the transformer.
        mask_width, prompt_activation, prompt_norm_eps: on the way of a rough mask, see `PromptEncoder`.
    """

    width: int = 256
    image_size: int = 1024
    grid_size: int = 64
    num_layers: int = 2
    num_heads: int = 8
    mlp_width: int = 2048
    attention_reduction: int = 2
    num_masks: int = 3
    iou_depth: int = 3
    iou_width: int = 256
    activation: str = "relu"
    norm_eps: float = 1e-6
    mask_width: int = 16
    prompt_activation: str = "gelu"
    prompt_norm_eps: float = 1e-6

    kind: ClassVar[str] = "mask_decoder"

    def __post_init__(self):
        for name in ("activation", "prompt_activation"):
            check_activation(f"mask_decoder.{name}", getattr(self, name))
        if self.width % 8:
            raise ConfigError(f"mask_decoder.width {self.width} is not a multiple of 8")
        if self.mask_width % 4 or self.mask_width < 4:
            raise ConfigError(f"mask_decoder.mask_width {self.mask_width} is not a multiple of 4")
        if self.width % (self.attention_reduction * self.num_heads):
            raise ConfigError(
                f"mask_decoder.width {self.width} is not a multiple of attention_reduction "
                f"{self.attention_reduction} times num_heads {self.num_heads}"
            )
        if self.iou_depth < 2:
            raise ConfigError(f"mask_decoder.iou_depth must be at least 2, got {self.iou_depth}")
        if self.num_masks < 1 or self.num_layers < 1:
            raise ConfigError(
                f"mask_decoder: num_masks {self.num_masks} and num_layers {self.num_layers} must be at least 1"
            )

    @property
    def mask_size(self) -> int:
        """Places of a side of a mask."""
        return 4 * self.grid_size

    @property
    def condition_width(self) -> int:
        """Channels of prompts from outside."""
        return self.width

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one image's map."""
        return (self.grid_size, self.grid_size, self.width)

    def check_encoder(self, encoder: Any) -> None:
        """Raises ConfigError unless an image encoder's config gives the map that is read."""
        wanted = self.image_size, self.grid_size, self.width
        found = tuple(getattr(encoder, name, None) for name in ("image_size", "grid_size", "feature_width"))
        if found != wanted:
            raise ConfigError(
                f"mask_decoder reads a map of (image_size, grid_size, feature_width) {wanted}; its encoder gives "
                f"{found}"
            )


class Masks(NamedTuple):
    """M masks of each of R prompts.

    Attributes:
        logits: [B, R, M, 4 g, 4 g], above 0 inside; of the image padded to a square, see `original_masks`.
        iou: [B, R, M], predicted overlap with the truth.
    """

    logits: jax.Array
    iou: jax.Array


class FeedForward(nn.Module):
    """Linear maps with ReLU between. Parameters in, hidden_{i} and out, each {kernel, bias}."""

    hidden: int
    out: int
    depth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., out]."""
        for name in ("in", *(f"hidden_{number}" for number in range(self.depth - 2))):
            linear = Linear((self.hidden,), ("embed", "mlp"), use_bias=True, dtype=self.dtype, name=name)
            x = jax.nn.relu(linear(x))
        return Linear((self.out,), ("mlp", "feature"), use_bias=True, dtype=self.dtype, name="out")(x)


class Upscale(nn.Module):
    """A map of twice the size: each place becomes 2 x 2. Parameters kernel [2, 2, features, in], bias [features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, in] -> [B, 2 h, 2 w, features]."""
        batch, height, width, channels = x.shape
        init = nn.with_logical_partitioning(fan_in_normal((channels,)), ("patch", "patch", "feature", "embed"))
        kernel = self.param("kernel", init, (2, 2, self.features, channels)).astype(self.dtype)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("feature",)), (self.features,))
        y = jnp.einsum("bhwc,ijoc->bhiwjo", x.astype(self.dtype), kernel) + bias.astype(self.dtype)
        return y.reshape(batch, 2 * height, 2 * width, self.features)


class MaskDecoder(nn.Module):
    """Image maps and prompts to masks.

    Parameters prompts/..., iou_token [D], mask_tokens [M + 1, D], blocks [L, ...], last_attn, last_norm, upscale_1,
    upscale_norm, upscale_2, hyper [M + 1, ...], iou_head.

    Attributes:
        config: sizes and options.
        dtype: compute dtype; masks and overlaps are float32.
        remat: rematerialisation policy of the blocks.
    """

    config: MaskDecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.prompts = PromptEncoder(
            c.width, c.image_size, c.grid_size, c.mask_width, c.prompt_activation, c.prompt_norm_eps, self.dtype
        )
        init = lambda *axes: nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)
        self.iou_token = self.param("iou_token", init("embed"), (c.width,))
        self.mask_tokens = self.param("mask_tokens", init(None, "embed"), (c.num_masks + 1, c.width))
        self.block = TwoWayBlock(
            c.width, c.num_heads, c.mlp_width, c.attention_reduction, c.activation, c.norm_eps, self.dtype, parent=None
        )
        self.hyper_mlp = FeedForward(c.width, c.width // 8, HYPER_DEPTH, self.dtype, parent=None)
        if self.is_initializing():
            tokens, place = jnp.zeros((1, 1, c.width), self.dtype), jnp.zeros((1, c.width), self.dtype)
            blocks = init_stack(self.block, c.num_layers, tokens, tokens, tokens, place, False)
            self.blocks = self.param("blocks", blocks)
            self.hyper = self.param("hyper", init_stack(self.hyper_mlp, c.num_masks + 1, tokens))
        else:
            self.blocks, self.hyper = (self.get_variable("params", name) for name in ("blocks", "hyper"))
        self.last_attn = attention(c.width, c.num_heads, c.attention_reduction, self.dtype)
        self.last_norm = LayerNorm(LAST_NORM_EPS, self.dtype)
        self.upscale_1, self.upscale_2 = Upscale(c.width // 4, self.dtype), Upscale(c.width // 8, self.dtype)
        self.upscale_norm = LayerNorm(UPSCALE_NORM_EPS, self.dtype)
        self.iou_head = FeedForward(c.iou_width, c.num_masks + 1, c.iou_depth, self.dtype)

    def __call__(
        self,
        image: jax.Array,
        points: jax.Array | None = None,
        labels: jax.Array | None = None,
        boxes: jax.Array | None = None,
        masks: jax.Array | None = None,
        embeddings: jax.Array | None = None,
        multimask: bool = True,
    ) -> Masks:
        """Masks of R prompts of each image; of one without any prompt if none is given.

        Args:
            image: [B, g, g, D], the image's map, or [B, g * g, D] as encoded media have it.
            points, labels, boxes: see `PromptEncoder.sparse`.
            masks: see `PromptEncoder.dense`.
            embeddings: [B, R, D] or [B, R, K, D], prompts from outside, each of one or of K tokens.
            multimask: whether the `num_masks` masks of an ambiguous prompt are wanted, or the one of a clear prompt.

        Raises:
            ValueError: shapes that do not fit.
        """
        c = self.config
        if image.shape[1:] not in ((c.grid_size, c.grid_size, c.width), (c.grid_size**2, c.width)):
            raise ValueError(f"the image's map is {image.shape}; wanted [B, {c.grid_size}, {c.grid_size}, {c.width}]")
        image = image.reshape(-1, 1, c.grid_size, c.grid_size, c.width).astype(self.dtype)
        parts = [] if embeddings is None else [self._outside(embeddings)]
        sparse = self.prompts.sparse(points, labels, boxes)
        parts = parts if sparse is None else [sparse, *parts]
        counts = {part.shape[:2] for part in parts} | ({masks.shape[:2]} if masks is not None else set())
        if any(batch != len(image) for batch, _ in counts) or len({number for _, number in counts} - {1}) > 1:
            raise ValueError(f"prompts of (images, prompts) {sorted(counts)} for {len(image)} images")
        number = max((count for _, count in counts), default=1)
        first = jnp.concatenate([self.iou_token[None], self.mask_tokens]).astype(self.dtype)
        parts = [jnp.broadcast_to(part, (len(image), number, *part.shape[2:])) for part in (first[None, None], *parts)]
        tokens = jnp.concatenate(parts, axis=2)
        dense = image + self.prompts.dense(masks)
        dense = jnp.broadcast_to(dense, (len(image), number, *dense.shape[2:]))
        logits, iou = self._decode(tokens.reshape(-1, *tokens.shape[2:]), dense.reshape(-1, *dense.shape[2:]))
        wanted = slice(1, None) if multimask else slice(0, 1)
        found = (x.reshape(len(image), number, *x.shape[1:])[:, :, wanted] for x in (logits, iou))
        return Masks(*found)

    def _outside(self, embeddings: jax.Array) -> jax.Array:
        if embeddings.ndim not in (3, 4) or embeddings.shape[-1] != self.config.width:
            raise ValueError(f"embeddings are {embeddings.shape}; wanted [B, R, {self.config.width}] or [B, R, K, ...]")
        embeddings = embeddings[:, :, None] if embeddings.ndim == 3 else embeddings
        return embeddings.astype(self.dtype)

    def _decode(self, tokens: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """tokens [B, T, D], image [B, g, g, D] -> float32 [B, M + 1, 4 g, 4 g], [B, M + 1]."""
        c, grid = self.config, image.shape[1:3]
        places = self.prompts.grid().reshape(-1, c.width)

        def apply(params, carry, first):
            return self.block.apply({"params": params}, *carry, tokens, places, first), first

        carry = tokens, image.reshape(len(image), -1, c.width)
        # What differs from block to block goes along the stack as a cache would.
        (x, image), _ = run_stack(apply, self.blocks, carry, jnp.arange(c.num_layers) == 0, self.remat)
        x = self.last_norm(x + read(self.last_attn, x + tokens, image + places, image))
        image = ACTIVATIONS["gelu"](self.upscale_norm(self.upscale_1(image.reshape(-1, *grid, c.width))))
        image = ACTIVATIONS["gelu"](self.upscale_2(image))
        apply_one = lambda params, token: self.hyper_mlp.apply({"params": params}, token)
        weights = jax.vmap(apply_one, (0, 1), 1)(self.hyper, x[:, 1 : c.num_masks + 2])
        logits = jnp.einsum("bmc,bhwc->bmhw", weights, image, preferred_element_type=jnp.float32)
        return logits, self.iou_head(x[:, 0]).astype(jnp.float32)

    def create(self, image: jax.Array) -> Masks:
        """Touches every parameter once: what `init` runs. image [B, g, g, D]."""
        return self(image)


def original_masks(
    logits: jax.Array, padded_size: int, inner_size: tuple[int, int], original_size: tuple[int, int]
) -> jax.Array:
    """Masks at the size of the image that was resized and padded on the right and below.

    Args:
        logits: [..., h, w] of the padded square.
        padded_size: pixels of the square's side.
        inner_size: (height, width) of the image inside it.
        original_size: (height, width) of the image before it was resized.

    Returns:
        [..., *original_size], between places bilinear in both steps.

    Raises:
        ValueError: an image that is larger than its square.
    """
    if max(inner_size) > padded_size:
        raise ValueError(f"an image of {inner_size[0]} x {inner_size[1]} is larger than its square of {padded_size}")
    x = resize(logits[..., None], (padded_size, padded_size), "bilinear")
    return resize(x[..., : inner_size[0], : inner_size[1], :], original_size, "bilinear")[..., 0]


class MaskModel(PartModel):
    """A mask decoder as a model of its own."""

    @property
    def module(self) -> MaskDecoder:
        """The flax module."""
        return MaskDecoder(self.config, jnp.dtype(self.dtype), self.remat)

    def __call__(self, params: dict[str, Any], image: jax.Array, **prompts: Any) -> Masks:
        """See `MaskDecoder.__call__`."""
        return self._apply(params, image, **prompts)
