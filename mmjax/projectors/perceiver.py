"""The Perceiver resampler: learned latents that read any number of features, block after block.

Alayrac et al., 2022 ("Flamingo"); by options as in IDEFICS (Laurençon et al., 2023, "OBELICS") and Idefics2
(Laurençon et al., 2024, "What matters when building vision-language models?").
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.nn.attention import Attention
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import NORMS, NormConfig
from mmjax.nn.stack import init_stack, run_stack
from mmjax.projectors.items import check_features, join_items, split_items


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Sizes and options of a Perceiver resampler.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM (or of what reads the tokens inside it).
        num_latents: Q, tokens of an item.
        latent_width: of the latents and of all blocks.
        num_layers, num_heads, num_kv_heads, head_dim, mlp_width: L, H, K, C, F.
        activation, gated, norm, norm_eps: of the blocks; "layer" or "rms" norms.
        qk_norm: whether a layer norm stands on each head of queries and keys.
        input_map: what brings features to `latent_width`: "none", "linear" (with bias) or "gated_mlp" (two
            maps to `input_hidden` and one back, with `input_activation`, as Idefics2 has).
        output_map: whether a linear map (with bias) brings latents to `width`.
        max_frames: rows of a learned embedding that is added to all features of a frame (Flamingo); 0: none.
        frame_features: features of a frame, where there is such an embedding.
        num_features: features of an item where all items have as many, see `split_items`.
    """

    in_width: int
    width: int
    num_latents: int = 64
    latent_width: int = 1024
    num_layers: int = 6
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 64
    mlp_width: int = 4096
    activation: str = "relu"
    gated: bool = False
    norm: str = "layer"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    input_map: str = "none"
    input_hidden: int = 0
    input_activation: str = "silu"
    output_map: bool = False
    max_frames: int = 0
    frame_features: int = 0
    num_features: int | None = None

    kind: ClassVar[str] = "perceiver"

    def __post_init__(self):
        check_choice("perceiver projector norm", self.norm, tuple(NORMS))
        check_choice("perceiver projector input_map", self.input_map, ("none", "linear", "gated_mlp"))
        for name in ("activation", "input_activation"):
            check_activation(f"perceiver projector {name}", getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"perceiver projector: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.input_map == "none" and self.in_width != self.latent_width:
            raise ConfigError(
                f"perceiver projector: without input_map, in_width {self.in_width} must be "
                f"latent_width {self.latent_width}"
            )
        if (self.input_map == "gated_mlp") != (self.input_hidden > 0):
            raise ConfigError(
                f"perceiver projector: input_hidden {self.input_hidden} does not fit input_map {self.input_map!r}"
            )
        if not self.output_map and self.width != self.latent_width:
            raise ConfigError(
                f"perceiver projector: without output_map, latent_width {self.latent_width} must be width {self.width}"
            )
        if (self.max_frames > 0) != (self.frame_features > 0):
            raise ConfigError(
                "perceiver projector: max_frames and frame_features go together, got "
                f"{self.max_frames} and {self.frame_features}"
            )
        if self.max_frames and self.num_features is None:
            raise ConfigError("perceiver projector: max_frames needs num_features")
        if self.max_frames:
            self._check_frames(self.num_features)

    def _check_frames(self, num_features: int) -> None:
        frames, rest = divmod(num_features, self.frame_features)
        if rest or frames > self.max_frames:
            raise ConfigError(
                f"perceiver projector: {num_features} features are not 1 to {self.max_frames} frames of "
                f"{self.frame_features} features"
            )

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item, whatever its grid: the latents.

        Raises:
            ConfigError: the encoder gives another number of features than the config says.
        """
        check_features(self.kind, self.num_features, num_features)
        return self.num_latents


class PerceiverBlock(nn.Module):
    """Latents read features and themselves, x + attn(norm(x), [norm(features), norm(x)]); then x + mlp(norm(x))."""

    config: PerceiverConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, Q, D], features [B, N, D], mask bool [B, 1, N + Q] -> [B, Q, D]."""
        c = self.config
        norm = lambda name: NormConfig(c.norm, c.norm_eps).module(self.dtype, name)
        attn = Attention(
            c.latent_width,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            dtype=self.dtype,
            qk_norm=NormConfig("layer", c.norm_eps) if c.qk_norm else None,
            name="attn",
        )
        latents = norm("attn_norm")(x)
        source = jnp.concatenate([norm("context_norm")(features), latents], axis=1)
        x = x + attn(latents, mask, source=source)[0]
        mlp = MLP(c.latent_width, c.mlp_width, c.activation, c.gated, dtype=self.dtype, name="mlp")
        return x + mlp(norm("mlp_norm")(x))


class PerceiverProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, I * Q, D].

    Parameters: latents [Q, latent width]; input/{kernel, bias} or input/{gate, up, down}/kernel; frame_embedding
    [max_frames, latent width]; blocks [L, ...]; norm; out/{kernel, bias}. Padding features are never seen.
    """

    config: PerceiverConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none.

        Raises:
            ValueError: see `split_items`.
        """
        c = self.config
        features, seen = split_items(media, c.num_features, self.is_initializing())
        x = self._input(features)
        if c.max_frames:
            x = x + self._frames(x.shape[1])
        latents = self._leaf("latents", (c.num_latents, c.latent_width), 1.0)
        latents = jnp.broadcast_to(latents, (x.shape[0], *latents.shape))
        mask = None
        if seen is not None:
            mask = jnp.concatenate([seen, jnp.ones((x.shape[0], c.num_latents), bool)], axis=1)[:, None]
        block = PerceiverBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            blocks = self.param("blocks", init_stack(block, c.num_layers, latents[:1], x[:1]))
        else:
            blocks = self.get_variable("params", "blocks")
        apply = lambda params, latents, cache: (block.apply({"params": params}, latents, x, mask), cache)
        latents, _ = run_stack(apply, blocks, latents)
        latents = NormConfig(c.norm, c.norm_eps).module(self.dtype, "norm")(latents)
        if c.output_map:
            latents = self._linear("out", c.width)(latents)
        return join_items(media, latents, seen)

    def _linear(self, name: str, width: int) -> Linear:
        return Linear((width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name=name)

    def _leaf(self, name: str, shape: tuple[int, int], deviation: float) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(deviation), (None, "embed"))
        return self.param(name, init, shape).astype(self.dtype)

    def _input(self, features: jax.Array) -> jax.Array:
        """[B, N, in_width] -> [B, N, latent_width]."""
        c = self.config
        if c.input_map == "none":
            return features.astype(self.dtype)
        if c.input_map == "linear":
            return self._linear("input", c.latent_width)(features)
        return MLP(c.latent_width, c.input_hidden, c.input_activation, True, dtype=self.dtype, name="input")(features)

    def _frames(self, num_features: int) -> jax.Array:
        """What is added to every feature of an item, [N, latent_width]."""
        c = self.config
        rows = self._leaf("frame_embedding", (c.max_frames, c.latent_width), 1.0)
        return jnp.repeat(rows[: num_features // c.frame_features], c.frame_features, axis=0)
