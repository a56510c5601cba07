"""The point cloud transformer: groups of neighbouring points, each made one token, through pre-norm blocks.

Yu et al., 2022, "Point-BERT", whose transformer ULIP-2 (Xue et al., 2024) and PointLLM (Xu et al., 2024) take over;
Qi et al., 2017 ("PointNet") for what makes a token of a group.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.nn.batch_norm import FixedBatchNorm
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.points import STARTS, gather_points, group_points
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class PointCloudConfig:
    """Sizes and options of a point cloud transformer.

    Attributes:
        num_points, channels: of one item; channels 0 to 2 are x, y, z, the others (colours, normals) go along.
        num_groups, group_size: groups, and the points of one.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        group_width: what the group embedding gives, before a map to D.
        point_widths: of the group embedding: hidden and output channels of its first stage; the hidden layer of
            its second stage has twice the latter.
        position_width: hidden channels of the map from centres to positions.
        activation, norm_eps: of the blocks; the position map has the same activation.
        qkv_bias: whether q, k and v have biases.
        start: where the choice of centres begins, see `farthest_points`.
        feature_strategy: "full", the class token and one token a group; "patches", without the class token; or
            "pooled", one token of 2 D channels, the class token and the greatest value of each channel.
    """

    num_points: int
    channels: int
    num_groups: int
    group_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    group_width: int = 256
    point_widths: tuple[int, int] = (128, 256)
    position_width: int = 128
    activation: str = "gelu"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    start: str = "first"
    feature_strategy: str = "full"

    kind: ClassVar[str] = "point_cloud"

    def __post_init__(self):
        check_activation("point_cloud.activation", self.activation)
        check_choice("point_cloud.start", self.start, STARTS)
        check_choice("point_cloud.feature_strategy", self.feature_strategy, ("full", "patches", "pooled"))
        if self.width % self.num_heads:
            raise ConfigError(f"point_cloud.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.channels < 3:
            raise ConfigError(f"point_cloud.channels must be at least 3 (x, y, z), got {self.channels}")
        for name in ("num_groups", "group_size"):
            if not 1 <= getattr(self, name) <= self.num_points:
                raise ConfigError(
                    f"point_cloud.{name} must be in 1..num_points {self.num_points}, got {getattr(self, name)}"
                )

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width * (2 if self.feature_strategy == "pooled" else 1)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (points, channels)."""
        return (self.num_points, self.channels)

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
            qkv_bias=self.qkv_bias,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item; neither argument matters, since the number of groups is fixed."""
        return {"full": self.num_groups + 1, "patches": self.num_groups, "pooled": 1}[self.feature_strategy]


class GroupEmbedding(nn.Module):
    """A group of points to one vector: point by point, with the maximum over the group in between and at the end."""

    config: PointCloudConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, G, K, channels] -> [B, G, group_width]."""
        hidden, out = self.config.point_widths

        def linear(name, features):
            return Linear((features,), (None, "feature"), use_bias=True, dtype=self.dtype, name=name)

        x = FixedBatchNorm(dtype=self.dtype, name="norm_1")(linear("point_1", hidden)(x))
        x = linear("point_2", out)(jax.nn.relu(x))
        whole = jnp.broadcast_to(jnp.max(x, axis=2, keepdims=True), x.shape)
        x = jnp.concatenate([whole, x], axis=-1)
        x = FixedBatchNorm(dtype=self.dtype, name="norm_2")(linear("point_3", 2 * out)(x))
        return jnp.max(linear("point_4", self.config.group_width)(jax.nn.relu(x)), axis=2)


class PointCloud(nn.Module):
    """Points to features, as an encoder (`Media -> Media`) or as a tower of its own (`run`).

    A point with a coordinate that is not a number is padding: it is in no group, and clouds of fewer points than
    there are groups have tokens that no other sees.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: PointCloudConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        normal = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed",))
        linear = lambda features, axes: Linear((features,), axes, use_bias=True, dtype=self.dtype)
        self.group_embed = GroupEmbedding(c, self.dtype)
        self.reduce = linear(c.width, ("feature", "embed"))
        self.position_1 = linear(c.position_width, (None, "feature"))
        self.position_2 = linear(c.width, ("feature", "embed"))
        self.class_embedding = self.param("class_embedding", normal, (c.width,))
        self.class_position = self.param("class_position", normal, (c.width,))
        self.post_norm = LayerNorm(c.norm_eps, self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def run(self, values: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """The whole tower on clouds.

        Args:
            values: points [B, num_points, channels].
            mask: bool [B, num_points], False for padding, besides points that are no numbers.

        Returns:
            "last_hidden_state" [B, 1 + G, D], normed; "pooled" [B, 2 D]; "seen" bool [B, 1 + G], False for
            groups that a cloud has too few points for.

        Raises:
            ValueError: another number of points or channels.
        """
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(
                f"clouds of {values.shape[1]} points with {values.shape[2]} channels, but the encoder takes "
                f"{c.num_points} with {c.channels}"
            )
        kept = jnp.all(jnp.isfinite(values), axis=-1)
        kept = kept if mask is None else kept & jnp.asarray(mask, bool)
        values = jnp.where(kept[..., None], values, 0)
        groups = group_points(values[..., :3], c.num_groups, c.group_size, c.start, kept)
        others = gather_points(values[..., 3:], groups.index)
        members = jnp.concatenate([groups.offsets, others], axis=-1)
        x = self.reduce(self.group_embed(members.astype(self.dtype)))
        places = self.position_2(ACTIVATIONS[c.activation](self.position_1(groups.centers)))

        def with_class(leaf, x):
            return jnp.concatenate([jnp.broadcast_to(leaf.astype(self.dtype), (x.shape[0], 1, c.width)), x], axis=1)

        x, places = with_class(self.class_embedding, x), with_class(self.class_position, places)
        seen = jnp.concatenate([jnp.ones_like(groups.seen[:, :1]), groups.seen], axis=1)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            # Positions are added anew before every block.
            return self.block.apply({"params": params}, x + places, mask=seen[:, None], cache=cache)

        x, _ = run_stack(apply, self.blocks, x, remat=self.remat)
        x = self.post_norm(x)
        highest = jnp.max(jnp.where(groups.seen[..., None], x[:, 1:], -jnp.inf), axis=1)
        # A cloud without any point has no group to look at.
        highest = jnp.where(groups.seen[:, :1], highest, 0)
        pooled = jnp.concatenate([x[:, 0], highest], axis=-1)
        return {"last_hidden_state": x, "pooled": pooled, "seen": seen}

    def __call__(self, media: Media) -> Media:
        """Points [B, I, num_points, channels] -> features [B, I * N, D or 2 D], each item's after the other's.

        Tokens of groups that a cloud has too few points for have the segment id 0, where there are any ids.
        """
        batch, items = media.values.shape[:2]
        out = self.run(media.values.reshape(batch * items, *media.values.shape[2:]))
        x, seen = out["last_hidden_state"], out["seen"]
        if self.config.feature_strategy == "pooled":
            x, seen = out["pooled"][:, None], seen[:, :1]
        elif self.config.feature_strategy == "patches":
            x, seen = x[:, 1:], seen[:, 1:]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), x.shape[1], axis=1) * seen.reshape(batch, -1)
        values = x.reshape(batch, items * x.shape[1], x.shape[2])
        return media.replace(values=values, segment_ids=segments, stage="encoded")

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, num_points, channels]."""
        return self.run(values)
