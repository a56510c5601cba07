"""The Q-Former: learned queries that read an image, and an instruction where there is one.

Li et al., 2023 ("BLIP-2"); Dai et al., 2023 ("InstructBLIP"). A BERT (Devlin et al., 2019) whose queries
cross-attend to the features of a frozen encoder in every few blocks; text shares the self-attention with the
queries but has feed-forward layers of its own.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.attention import Attention
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import depth, init_stack, run_stack
from mmjax.projectors.items import check_features, join_items, split_items
from mmjax.projectors.qformer_masks import objective_mask


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes and options of a Q-Former and the map behind it.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        num_queries: Q, tokens of an item.
        query_width, num_layers, num_heads, mlp_width: of the Q-Former itself.
        cross_attention_frequency: blocks 0, f, 2f, ... read the features.
        activation, norm_eps: of the blocks.
        vocab_size: of the Q-Former's own tokenizer where it reads text (`Media.text`), else None.
        max_positions: longest text.
        num_features: features of an item where all items have as many, see `split_items`. An encoder may give
            several times as many, those of the frames of a video: each frame is then read by itself.
        dropout: share of the numbers dropped in training, of the embeddings and of what each layer adds.
        attention_dropout: share of the weights of every softmax dropped in training.
    """

    in_width: int
    width: int
    num_queries: int = 32
    query_width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    cross_attention_frequency: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    vocab_size: int | None = None
    max_positions: int = 512
    num_features: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0

    kind: ClassVar[str] = "qformer"

    def __post_init__(self):
        check_activation("qformer projector activation", self.activation)
        for name in ("num_queries", "num_layers", "cross_attention_frequency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"qformer projector: {name} must be at least 1, got {getattr(self, name)}")
        if self.query_width % self.num_heads:
            raise ConfigError(
                f"qformer projector: query_width {self.query_width} is not a multiple of num_heads {self.num_heads}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"qformer projector: {name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def drops(self) -> bool:
        """Whether training drops anything."""
        return self.dropout > 0 or self.attention_dropout > 0

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Numbers of the blocks that read the features."""
        return tuple(range(0, self.num_layers, self.cross_attention_frequency))

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item, whatever its grid: the queries, once for every `num_features` of its features.

        Raises:
            ConfigError: the encoder gives no whole number of times the features that the config says.
        """
        frames = num_features // self.num_features if self.num_features else 1
        if frames < 1 or (self.num_features and num_features % self.num_features):
            check_features(self.kind, self.num_features, num_features)
        return frames * self.num_queries


def _attention(config: QFormerConfig, dtype: jnp.dtype) -> Attention:
    heads, width = config.num_heads, config.query_width
    return Attention(width, heads, heads, width // heads, True, True, dtype=dtype, dropout=config.attention_dropout)


class SelfBlock(nn.Module):
    """What every block has: norm(x + attn(x)), and norm(x + mlp(x)) with other weights for queries and text.

    With the rng "dropout", dropout is on.
    """

    config: QFormerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.attn, self.attn_norm = _attention(c, self.dtype), LayerNorm(c.norm_eps, self.dtype)
        size = c.query_width, c.mlp_width, c.activation
        self.mlp = MLP(*size, use_bias=True, dtype=self.dtype)
        self.mlp_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.vocab_size:
            self.text_mlp = MLP(*size, use_bias=True, dtype=self.dtype)
            self.text_mlp_norm = LayerNorm(c.norm_eps, self.dtype)
        self.drop = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))

    def attend(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [B, Q + T, D] -> the same; mask bool [B, Q + T, Q + T]."""
        return self.attn_norm(x + self.drop(self.attn(x, mask)[0]))

    def feed(self, x: jax.Array, num_queries: int) -> jax.Array:
        """x [B, Q + T, D] -> the same, the first `num_queries` positions as queries."""
        query, text = x[:, :num_queries], x[:, num_queries:]
        parts = [self.mlp_norm(query + self.drop(self.mlp(query)))] if num_queries else []
        if text.shape[1]:
            parts.append(self.text_mlp_norm(text + self.drop(self.text_mlp(text))))
        return jnp.concatenate(parts, axis=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """One position as text (where there is text) and one as a query: what `init` runs. x [B, 2, D]."""
        return self.feed(self.attend(x, None), 1 if self.config.vocab_size else 2)


class CrossBlock(nn.Module):
    """What some blocks have besides: norm(x + attn(x, features)). With the rng "dropout", dropout is on."""

    config: QFormerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.attn = _attention(self.config, self.dtype)
        self.norm = LayerNorm(self.config.norm_eps, self.dtype)
        self.drop = nn.Dropout(self.config.dropout, deterministic=not self.has_rng("dropout"))

    def __call__(self, x: jax.Array, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, Q, D], features [B, N, in_width], mask bool [B, 1, N] -> [B, Q, D]."""
        return self.norm(x + self.drop(self.attn(x, mask, source=features)[0]))


def _at(tree: Any, index: int | slice) -> Any:
    """One layer, or some, of stacked leaves or of a tuple of one tree a layer."""
    return tree[index] if isinstance(tree, tuple) else jax.tree.map(lambda leaf: leaf[index], tree)


def _noise(key: jax.Array | None, call: int) -> dict[str, jax.Array]:
    """The rngs of one of a block's calls; none without a key."""
    return {} if key is None else {"dropout": jax.random.fold_in(key, call)}


class QFormer(nn.Module):
    """The transformer without its queries and the map behind it.

    Parameters: norm; blocks [L, ...]; cross [blocks that read features, ...]; with text, embedding [V, D] and
    position_embedding [max_positions, D].
    """

    config: QFormerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.norm, self.drop = LayerNorm(c.norm_eps, self.dtype), nn.Dropout(c.dropout)
        if c.vocab_size:
            normal = nn.initializers.normal(0.02)
            tokens = nn.with_logical_partitioning(normal, ("vocab", "embed"))
            positions = nn.with_logical_partitioning(normal, (None, "embed"))
            self.embedding = self.param("embedding", tokens, (c.vocab_size, c.query_width))
            self.position_embedding = self.param("position_embedding", positions, (c.max_positions, c.query_width))
        self.self_block = SelfBlock(c, self.dtype, parent=None)
        self.cross_block = CrossBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            x, features = jnp.zeros((1, 2, c.query_width)), jnp.zeros((1, 1, c.in_width))
            self.blocks = self.param("blocks", init_stack(self.self_block, c.num_layers, x))
            self.cross = self.param("cross", init_stack(self.cross_block, len(c.cross_layers), x, features))
        else:
            self.blocks = self.get_variable("params", "blocks")
            self.cross = self.get_variable("params", "cross")

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """int [B, T] each -> [B, T, D], before the norm."""
        return (self.embedding[tokens] + self.position_embedding[positions]).astype(self.dtype)

    def __call__(
        self,
        x: jax.Array,
        num_queries: int,
        features: jax.Array | None = None,
        mask: jax.Array | None = None,
        seen: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states [B, Q + T, D].

        Args:
            x: queries and embedded text, [B, Q + T, D]; either may be missing.
            num_queries: Q.
            features: [B, N, in_width]; needed where there are queries.
            mask: bool [B, Q + T, Q + T] as `objective_mask` gives it; None: all see all.
            seen: bool [B, N], False is padding.
            rng: key of dropout, which is off without.
        """
        every, layers = self.config.cross_attention_frequency, self.config.num_layers
        visible = None if seen is None else seen[:, None]

        def period(params: Any, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
            """One block that reads the features and those behind it that do not."""
            for index in range(depth(params["blocks"])):
                one, key = {"params": _at(params["blocks"], index)}, _at(params["keys"], index)
                x = self.self_block.apply(one, x, mask, method="attend", rngs=_noise(key, 0))
                if index == 0 and num_queries:
                    cross, query = {"params": params["cross"]}, x[:, :num_queries]
                    query = self.cross_block.apply(cross, query, features, visible, rngs=_noise(key, 1))
                    x = jnp.concatenate([query, x[:, num_queries:]], axis=1)
                x = self.self_block.apply(one, x, num_queries, method="feed", rngs=_noise(key, 2))
            return x, cache

        x, keys = self.norm(x), None
        if rng is not None:
            first, rng = jax.random.split(rng)
            x = self.drop(x, deterministic=False, rng=first)
            keys = jax.random.split(rng, layers)
        stack = {"blocks": self.blocks, "keys": keys}
        if isinstance(self.blocks, tuple):
            for number, start in enumerate(range(0, layers, every)):
                own = {name: _at(part, slice(start, start + every)) for name, part in stack.items()}
                x, _ = period({**own, "cross": _at(self.cross, number)}, x)
            return x
        whole, rest = divmod(layers, every)
        inside, behind = slice(whole * every), slice(whole * every, None)
        if whole:
            split = lambda leaf: leaf[inside].reshape(whole, every, *leaf.shape[1:])
            x, _ = run_stack(period, {**jax.tree.map(split, stack), "cross": _at(self.cross, slice(whole))}, x)
        if rest:
            x, _ = period({**_at(stack, behind), "cross": _at(self.cross, -1)}, x)
        return x


class QFormerProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, I * Q, D].

    Parameters: queries [Q, query width]; qformer, see `QFormer`; out/{kernel, bias}. Padding features
    (segment 0) are never seen; nor does an item see another, or the padding of the instruction.
    """

    config: QFormerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout (needs the rng "dropout" where the config has any).

        Raises:
            ValueError: the Q-Former reads text but `media.text` is None, or see `split_items`.
        """
        c = self.config
        features, seen = split_items(media, c.num_features, self.is_initializing())
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        queries = self.param("queries", init, (c.num_queries, c.query_width)).astype(self.dtype)
        x, mask = jnp.broadcast_to(queries, (features.shape[0], *queries.shape)), None
        qformer = QFormer(c, self.dtype, name="qformer")
        if c.vocab_size and not self.is_initializing():
            if media.text is None:
                raise ValueError("the Q-Former reads an instruction, but Media has no text")
            items = features.shape[0] // media.values.shape[0]
            of_item = lambda field: jnp.repeat(jnp.asarray(field), items, axis=0)
            text = qformer.embed(of_item(media.text.tokens), of_item(media.text.positions))
            mask = objective_mask("matching", c.num_queries, of_item(media.text.segment_ids) > 0)
            x = jnp.concatenate([x, text], axis=1)
        rng = self.make_rng("dropout") if train and c.drops else None
        x = qformer(x, c.num_queries, features, mask, seen, rng)[:, : c.num_queries]
        out = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="out")
        joined = join_items(media, out(x), seen)
        if c.num_features is not None and media.segment_ids is not None:
            # What was read by itself may be one of several frames, whose tokens are all of one item.
            numbers = jnp.asarray(media.segment_ids).reshape(media.values.shape[0], -1, c.num_features).max(axis=2)
            joined = joined.replace(segment_ids=jnp.repeat(numbers, c.num_queries, axis=1))
        return joined
