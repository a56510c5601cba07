"""The vision transformer: plain ViT, CLIP's and SigLIP's image towers by options.

Dosovitskiy et al., 2021 (ViT); Radford et al., 2021 (CLIP); Zhai et al., 2023 (SigLIP).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack


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
        pool: "class" (the normed class token), "attention" (SigLIP's attention pooling) or "none".
        projection_dim: width of a bias-free map behind the pooled vector, or None.
        feature_layers: which hidden states the features are, as indices of (input of block 0, output of
            block 0, ..., output of block L-1); several are concatenated over channels (LLaVA).
        feature_strategy: "full"; "patches": without the class token; "no_first": without the first token,
            whatever it is (what LLaVA's "default" does to a tower without a class token).
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

    kind: ClassVar[str] = "vit"

    def __post_init__(self):
        check_activation("vit.activation", self.activation)
        check_choice("vit.pool", self.pool, ("class", "attention", "none"))
        check_choice("vit.feature_strategy", self.feature_strategy, ("full", "patches", "no_first"))
        if self.width % self.num_heads:
            raise ConfigError(f"vit.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.pool == "class" and not self.class_token:
            raise ConfigError('vit.pool "class" needs class_token')
        if self.projection_dim and self.pool == "none":
            raise ConfigError("vit.projection_dim needs a pool")
        if not self.feature_layers:
            raise ConfigError("vit.feature_layers must name at least one hidden state")
        for layer in self.feature_layers:
            if not -self.num_layers - 1 <= layer <= self.num_layers:
                raise ConfigError(
                    f"vit.feature_layers: {layer} is not among the {self.num_layers + 1} hidden states"
                )
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"vit.image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )

    @property
    def num_patches(self) -> int:
        """P: patches of one image; pixels that no whole patch covers are dropped, as published models do."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def drops_first(self) -> bool:
        """Whether the features leave out the first token."""
        only_class = self.feature_strategy == "patches" and self.class_token
        return only_class or self.feature_strategy == "no_first"

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
            norm="layer",
            norm_eps=self.norm_eps,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image; every image is resized to `image_size`, so the arguments do not matter."""
        return self.num_patches + int(self.class_token) - int(self.drops_first)


class AttentionPool(nn.Module):
    """SigLIP's pooling: a learned probe attends to all tokens, then a residual MLP."""

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, D]."""
        c, block = self.config, self.config.block
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        probe = self.param("probe", init, (1, c.width)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, c.width))
        attn = Attention(
            c.width, c.num_heads, c.num_heads, block.head_dim, True, True, dtype=self.dtype, name="attn"
        )
        x, _ = attn(probe, source=x)
        h = LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
        x = x + MLP(c.width, c.mlp_width, c.activation, use_bias=True, dtype=self.dtype, name="mlp")(h)
        return x[:, 0]


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
        if c.pre_norm:
            self.pre_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.final_norm or c.pool == "class":
            self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.pool == "attention":
            self.head = AttentionPool(c, self.dtype)
        if c.projection_dim:
            self.projection = Linear((c.projection_dim,), ("embed", "feature"), dtype=self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def hidden_states(self, images: jax.Array, layers: tuple[int, ...]) -> list[jax.Array]:
        """The asked hidden states [B, N, D] of images [B, H, W, 3]; blocks behind the last one do not run."""
        c = self.config
        x = self.patch_embed(patches_of(images, c.patch_size))
        if c.class_token:
            first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([first, x], axis=1)
        if x.shape[1] != self.position_embedding.shape[0]:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels give {x.shape[1]} tokens, but the encoder "
                f"has {self.position_embedding.shape[0]} positions ({c.image_size} x {c.image_size} pixels)"
            )
        x = x + self.position_embedding.astype(self.dtype)
        if c.pre_norm:
            x = self.pre_norm(x)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": params}, x, cache=cache)

        wanted = [layer % (c.num_layers + 1) for layer in layers]
        found, at = {0: x}, 0
        for stop in sorted(set(wanted) - {0}):
            x, _ = run_stack(apply, self.blocks, x, remat=self.remat, start=at, stop=stop)
            found[stop], at = x, stop
        return [found[layer] for layer in wanted]

    def run(self, images: jax.Array) -> dict[str, jax.Array]:
        """The whole tower on images [B, H, W, 3].

        Returns:
            "last_hidden_state" [B, N, D]; "pooled" [B, D] unless pool is "none"; "embeds"
            [B, projection_dim] where there is a projection.
        """
        c = self.config
        (x,) = self.hidden_states(images, (-1,))
        x = self.post_norm(x) if c.final_norm else x
        out = {"last_hidden_state": x}
        if c.pool == "class":
            out["pooled"] = x[:, 0] if c.final_norm else self.post_norm(x[:, 0])
        elif c.pool == "attention":
            out["pooled"] = self.head(x)
        if c.projection_dim:
            out["embeds"] = self.projection(out["pooled"])
        return out

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, D]."""
        c = self.config
        batch, items = media.values.shape[:2]
        images = media.values.reshape(batch * items, *media.values.shape[2:])
        x = jnp.concatenate(self.hidden_states(images, c.feature_layers), axis=-1)
        if c.drops_first:
            x = x[:, 1:]
        per_item = x.shape[1]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), per_item, axis=1)
        values = x.reshape(batch, items * per_item, x.shape[-1])
        return media.replace(values=values, segment_ids=segments, stage="encoded")

    def create(self, images: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        return self.run(images)
