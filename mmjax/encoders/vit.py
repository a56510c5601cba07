"""The vision transformer: one module, whose options make the image towers of several families.

| family | options beside the sizes |
|---|---|
| CLIP | the defaults |
| SigLIP | no class_token, no pre_norm, patch_bias, final_norm, pool "attention" or "none" |
| SigLIP 2 (NaFlex) | as SigLIP, resize_positions "bilinear_antialias", packed patches as input |
| ViT | patch_bias, final_norm, no pre_norm, pool "dense" or "none" |
| DINOv2 | as ViT with pool "class", layer_scale, mask_token, resize_positions "bicubic", gated in the giant one |
| DINOv2 with registers | as DINOv2, num_registers, resize_positions "bicubic_antialias" |
| InternViT | as DINOv2 with pool "none"; the larger one norm "rms" and qk_norm |
| Idefics2, Idefics3 | as SigLIP, feature_norm, resize_positions "floor"; Idefics2 packed |
| EVA-CLIP in BLIP-2 | as ViT with pool "class_twice", feature_norm where its features go to a Q-Former |

Dosovitskiy et al., 2021 (ViT); Radford et al., 2021 (CLIP); Zhai et al., 2023 (SigLIP); Tschannen et al., 2025
(SigLIP 2); Oquab et al., 2023 (DINOv2); Darcet et al., 2024 (registers); Fang et al., 2023 (EVA); Li et al.,
2023 (FLIP: patches dropped in training).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.each import encode_each
from mmjax.encoders.packed import item_mask, packed_places
from mmjax.encoders.pool import AttentionPool
from mmjax.encoders.positions import METHODS, read_grid, resize_grid
from mmjax.encoders.scaled_block import ScaledBlock
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import NORMS, LayerNorm
from mmjax.nn.stack import init_stack, run_stack

POOLS = ("class", "class_twice", "dense", "attention", "none")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and options of a vision transformer.

    Attributes:
        image_size, patch_size: pixels of a side.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        activation, norm_eps: of the blocks.
        class_token: whether a learned token stands before the patches (CLIP).
        pre_norm: whether a norm stands before the blocks (CLIP).
        patch_bias: whether the patch convolution has a bias (SigLIP).
        final_norm: whether the norm behind the blocks is applied to all tokens (SigLIP), not to the class
            token alone (CLIP).
        pool: "class" (the normed class token), "class_twice" (normed by final_norm, then once more: BLIP-2),
            "dense" (the normed class token through a linear map and tanh: ViT), "attention" (SigLIP's attention
            pooling) or "none".
        projection_dim: width of a bias-free map behind the pooled vector, or None.
        feature_layers: which hidden states the features are, as indices of (input of block 0, output of
            block 0, ..., output of block L-1); several are concatenated over channels (LLaVA).
        feature_strategy: "full"; "patches": without the class token and the registers; "no_first": without
            the first token, whatever it is (what LLaVA's "default" does to a tower without a class token).
        feature_norm: whether the features go through the norm behind the blocks (DINOv2, BLIP-2).
        extra_layers: which hidden states go to `extra_features` besides, as "layer_{index}" with the index from 0 and
            the same tokens as the features.
        qkv_bias: whether q, k and v have biases.
        gated: whether the MLPs are gated.
        layer_scale: value at which learned scales on what the blocks add start, or None for no scales.
        num_registers: learned tokens without a position, between the class token and the patches.
        mask_token: whether there is a learned token that stands in for masked patches, see `run`.
        resize_positions: how positions are read for images of another size, see `mmjax.encoders.positions`,
            or "none": such images are an error.
        keep_patches: share of the patches, drawn anew for each image, that go through the blocks when the
            rng "dropout" is given (FLIP); without the rng, all do.
        norm, qk_norm: of the blocks: "layer" or "rms", and whether q and k are normalised, over all heads together
            (the larger InternViT).
        packed: whether items are packed patches of images of any shape, not images of `image_size`.
    """

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    final_norm: bool = False
    pool: str = "class"
    projection_dim: int | None = None
    feature_layers: tuple[int, ...] = (-1,)
    feature_strategy: str = "full"
    feature_norm: bool = False
    qkv_bias: bool = True
    gated: bool = False
    layer_scale: float | None = None
    num_registers: int = 0
    mask_token: bool = False
    resize_positions: str = "none"
    keep_patches: float = 1.0
    norm: str = "layer"
    qk_norm: bool = False
    packed: bool = False
    extra_layers: tuple[int, ...] = ()

    kind: ClassVar[str] = "vit"

    def __post_init__(self):
        check_activation("vit.activation", self.activation)
        check_choice("vit.pool", self.pool, POOLS)
        check_choice("vit.feature_strategy", self.feature_strategy, ("full", "patches", "no_first"))
        check_choice("vit.norm", self.norm, tuple(NORMS))
        check_choice("vit.resize_positions", self.resize_positions, ("none", *METHODS))
        if self.width % self.num_heads:
            raise ConfigError(f"vit.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.pool in ("class", "class_twice", "dense") and not self.class_token:
            raise ConfigError(f'vit.pool "{self.pool}" needs class_token')
        if self.pool in ("class_twice", "dense") and not self.final_norm:
            raise ConfigError(f'vit.pool "{self.pool}" needs final_norm')
        if self.feature_norm and not self.has_post_norm:
            raise ConfigError('vit.feature_norm needs final_norm or pool "class": there is no norm otherwise')
        if self.num_registers < 0:
            raise ConfigError(f"vit.num_registers must be at least 0, got {self.num_registers}")
        if not 0 < self.keep_patches <= 1:
            raise ConfigError(f"vit.keep_patches must be in (0, 1], got {self.keep_patches}")
        if self.projection_dim and self.pool == "none":
            raise ConfigError("vit.projection_dim needs a pool")
        if not self.feature_layers:
            raise ConfigError("vit.feature_layers must name at least one hidden state")
        for name in ("feature_layers", "extra_layers"):
            for layer in getattr(self, name):
                if not -self.num_layers - 1 <= layer <= self.num_layers:
                    raise ConfigError(f"vit.{name}: {layer} is not among the {self.num_layers + 1} hidden states")
        if self.packed and (self.resize_positions == "none" or self.num_leading):
            raise ConfigError("vit.packed needs resize_positions, no class_token and no registers")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"vit.image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )

    @property
    def grid_size(self) -> int:
        """Patches of a side of an image of `image_size`."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P: patches of one image; pixels that no whole patch covers are dropped, as published models do."""
        return self.grid_size**2

    @property
    def num_leading(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.num_registers

    @property
    def num_dropped(self) -> int:
        """How many tokens from the first on the features leave out."""
        return {"full": 0, "patches": self.num_leading, "no_first": 1}[self.feature_strategy]

    @property
    def has_post_norm(self) -> bool:
        """Whether there is a norm behind the blocks."""
        return self.final_norm or self.pool == "class"

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width * len(self.feature_layers)

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
            norm=self.norm,
            norm_eps=self.norm_eps,
            gated=self.gated,
            qk_norm=self.qk_norm,
            joint_qk_norm=True,
            qkv_bias=self.qkv_bias,
            out_bias=True,
            mlp_bias=True,
        )

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3); packed, (patches, numbers of a patch) of an image of `image_size`."""
        if self.packed:
            return (self.num_patches, 3 * self.patch_size**2)
        return (self.image_size, self.image_size, 3)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image.

        Args:
            grid: (time, height, width) of the image in patches; it counts where positions are resized. Other
                encoders see images of `image_size` only.
            original_size: does not matter.
        """
        patches = self.num_patches
        if grid is not None and self.resize_positions != "none":
            patches = int(grid[0]) * int(grid[1]) * int(grid[2])
        return patches + self.num_leading - self.num_dropped


def patches_of(images: jax.Array, size: int) -> jax.Array:
    """Cuts images [B, H, W, 3] into patches [B, P, size, size, 3], row by row; a rest at the edge is dropped."""
    rows, columns = images.shape[1] // size, images.shape[2] // size
    images = images[:, : rows * size, : columns * size]
    patches = images.reshape(images.shape[0], rows, size, columns, size, images.shape[-1])
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape[0], rows * columns, size, size, -1)


class ViT(nn.Module):
    """Images to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed",))
        positions = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        # A convolution whose stride is its size is one matrix product over patches.
        axes = ("patch", "patch", None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=3, use_bias=c.patch_bias, dtype=self.dtype)
        if c.class_token:
            self.class_embedding = self.param("class_embedding", embed, (c.width,))
        tokens = c.num_patches + int(c.class_token)
        self.position_embedding = self.param("position_embedding", positions, (tokens, c.width))
        if c.num_registers:
            self.registers = self.param("registers", positions, (c.num_registers, c.width))
        if c.mask_token:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
            self.mask_embedding = self.param("mask_embedding", zeros, (c.width,))
        if c.pre_norm:
            self.pre_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.has_post_norm:
            self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.pool == "attention":
            self.head = AttentionPool(c.block, self.dtype)
        if c.pool == "dense":
            self.pooler = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype)
        if c.projection_dim:
            self.projection = Linear((c.projection_dim,), ("embed", "feature"), dtype=self.dtype)
        if c.layer_scale is None:
            self.block = Block(c.block, self.dtype, parent=None)
        else:
            self.block = ScaledBlock(c.block, c.layer_scale, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def _positions(self, images: jax.Array) -> jax.Array:
        """Positions of the class token and the patches of images [B, H, W, 3]."""
        c = self.config
        rows, columns = images.shape[1] // c.patch_size, images.shape[2] // c.patch_size
        if (rows, columns) == (c.grid_size, c.grid_size):
            return self.position_embedding.astype(self.dtype)
        if c.resize_positions == "none" or not rows * columns:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels give {rows * columns + int(c.class_token)} "
                f"tokens ({rows} x {columns} patches), but the encoder has {self.position_embedding.shape[0]} "
                f"positions ({c.image_size} x {c.image_size} pixels)"
            )
        first = self.position_embedding[: int(c.class_token)].astype(self.dtype)
        grid = resize_grid(
            self.position_embedding[int(c.class_token) :], rows, columns, c.resize_positions
        )
        return jnp.concatenate([first, grid.astype(self.dtype)])

    def _embed(self, images: jax.Array, masked: jax.Array | None) -> jax.Array:
        """Images [B, H, W, 3] -> what block 0 takes, [B, N, D]."""
        c = self.config
        x = self.patch_embed(patches_of(images, c.patch_size))
        if masked is not None:
            if not c.mask_token:
                raise ValueError("masked patches need an encoder with mask_token")
            x = jnp.where(masked[..., None], self.mask_embedding.astype(self.dtype), x)

        def token(leaf):
            return jnp.broadcast_to(leaf.astype(self.dtype), (x.shape[0], leaf.size // c.width, c.width))

        if c.class_token:
            x = jnp.concatenate([token(self.class_embedding), x], axis=1)
        x = x + self._positions(images)
        if c.num_registers:
            first = int(c.class_token)
            x = jnp.concatenate([x[:, :first], token(self.registers), x[:, first:]], axis=1)
        if c.keep_patches < 1 and self.has_rng("dropout"):
            count = x.shape[1] - c.num_leading
            draw = jax.random.uniform(self.make_rng("dropout"), (x.shape[0], count))
            kept = jnp.sort(jnp.argsort(draw)[:, : max(1, round(count * c.keep_patches))])
            patches = jnp.take_along_axis(x[:, c.num_leading :], kept[..., None], axis=1)
            x = jnp.concatenate([x[:, : c.num_leading], patches], axis=1)
        return x

    def _embed_packed(self, patches: jax.Array, segments: jax.Array, grid: jax.Array) -> jax.Array:
        """Packed patches [B, N, patch_size ** 2 * 3] -> what block 0 takes, [B, N, D]."""
        c = self.config
        if c.resize_positions == "none" or c.num_leading or patches.shape[-1] != 3 * c.patch_size**2:
            raise ValueError(
                f"packed patches have {3 * c.patch_size**2} numbers each and need an encoder with resize_positions "
                f"and without class_token and registers; these have {patches.shape[-1]}, the encoder has "
                f"resize_positions {c.resize_positions!r}, class_token {c.class_token}, "
                f"{c.num_registers} registers"
            )
        x = self.patch_embed(patches.reshape(*patches.shape[:2], c.patch_size, c.patch_size, 3))
        places = packed_places(segments, grid)
        return x + read_grid(self.position_embedding, *places, c.resize_positions).astype(self.dtype)

    def _blocks(self, x: jax.Array, mask: jax.Array | None, layers: tuple[int, ...]) -> list[jax.Array]:
        """The asked hidden states [B, N, D]; blocks behind the last one do not run."""
        c = self.config
        if c.pre_norm:
            x = self.pre_norm(x)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": params}, x, mask=mask, cache=cache)

        wanted = [layer % (c.num_layers + 1) for layer in layers]
        found, at = {0: x}, 0
        for stop in sorted(set(wanted) - {0}):
            x, _ = run_stack(apply, self.blocks, x, remat=self.remat, start=at, stop=stop)
            found[stop], at = x, stop
        return [found[layer] for layer in wanted]

    def hidden_states(self, images: jax.Array, layers: tuple[int, ...]) -> list[jax.Array]:
        """The asked hidden states [B, N, D] of images [B, H, W, 3]; blocks behind the last one do not run."""
        return self._blocks(self._embed(images, None), None, layers)

    def run(
        self,
        values: jax.Array,
        mask: jax.Array | None = None,
        shapes: jax.Array | None = None,
        masked: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The whole tower on images.

        Args:
            values: images [B, H, W, 3], or patches [B, N, patch_size ** 2 * 3] of one image a row.
            mask: bool [B, N], which patches are no padding; needed with patches.
            shapes: int [B, 2], rows and columns of patches of each image; needed with patches.
            masked: bool [B, P], patches of images that the mask token stands in for.

        Returns:
            "last_hidden_state" [B, N, D]; "pooled" [B, D] unless pool is "none"; "embeds"
            [B, projection_dim] where there is a projection.

        Raises:
            ValueError: images of a size that the encoder has no positions for; patches without mask or shapes.
        """
        c = self.config
        if values.ndim == 3:
            if mask is None or shapes is None:
                raise ValueError("patches [B, N, ...] need the mask of what is no padding and the shapes of the images")
            segments = mask.astype(jnp.int32)
            grid = jnp.concatenate([jnp.ones_like(shapes[:, :1]), shapes], axis=1)[:, None]
            x, seen = self._embed_packed(values, segments, grid), item_mask(segments)
        else:
            x, seen = self._embed(values, masked), None
        (x,) = self._blocks(x, seen, (-1,))
        x = self.post_norm(x) if c.final_norm else x
        out = {"last_hidden_state": x}
        if c.pool == "class":
            out["pooled"] = x[:, 0] if c.final_norm else self.post_norm(x[:, 0])
        elif c.pool == "class_twice":
            out["pooled"] = self.post_norm(x[:, 0])
        elif c.pool == "dense":
            out["pooled"] = jnp.tanh(self.pooler(x[:, 0]))
        elif c.pool == "attention":
            out["pooled"] = self.head(x, None if mask is None else mask[:, None])
        if c.projection_dim:
            out["embeds"] = self.projection(out["pooled"])
        return out

    def __call__(self, media: Media) -> Media:
        """Raw media -> features, each item's after the other's.

        Images [B, I, H, W, 3] give [B, I * N, D]. Packed patches [B, N, patch_size ** 2 * 3] of images of any
        shape, with `segment_ids` [B, N] and `grid` [B, I, 3], give [B, N, D]; an item sees itself only.
        """
        c = self.config
        if media.values.ndim == 3:
            if media.segment_ids is None or media.grid is None:
                raise ValueError("packed patches need segment_ids and grid")
            segments = jnp.asarray(media.segment_ids)
            x = self._embed_packed(media.values, segments, jnp.asarray(media.grid))
            return self._split(media.replace(values=self._features(x, item_mask(segments)), stage="encoded"))
        features = lambda images: self._features(self._embed(images, None), None)[:, c.num_dropped :]
        return self._split(encode_each(media, features))

    def _features(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The features' hidden states side by side, those of the extra layers behind them."""
        c = self.config
        found = self._blocks(x, mask, (*c.feature_layers, *c.extra_layers))
        if c.feature_norm:
            count = len(c.feature_layers)
            found[:count] = [self.post_norm(x) for x in found[:count]]
        return jnp.concatenate(found, axis=-1)

    def _split(self, media: Media) -> Media:
        """Takes the extra layers out of the encoded `values`."""
        c = self.config
        if not c.extra_layers:
            return media
        cuts = [c.feature_width + c.width * number for number in range(len(c.extra_layers))]
        features, *extra = jnp.split(media.values, cuts, axis=-1)
        names = (f"layer_{layer % (c.num_layers + 1)}" for layer in c.extra_layers)
        found = {**(media.extra_features or {}), **dict(zip(names, extra, strict=True))}
        return media.replace(values=features, extra_features=found)

    def create(self, images: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3], or whole grids of packed patches."""
        if images.ndim == 3:
            side = self.config.grid_size
            return self.run(images, jnp.ones(images.shape[:2], bool), jnp.full((len(images), 2), side))
        return self.run(images)
