"""A large image as tiles that go through one tower, each place of a tile with a low-rank adapter of its own.

Li et al., 2024, "Monkey": an image of 896 x 1344 pixels is six tiles of 448 x 448 and a view of the whole, so that a
tower trained at 448 sees detail without being trained anew: it stays frozen and every tile's place has an adapter. Liu
et al., 2024, "TextMonkey": windows that are shifted over the borders of tiles let those that cut a word see each other.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.across_tiles import AcrossTiles
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.nn.linear import fan_in_normal
from mmjax.nn.lora import LoRAConfig, merge_lora


@dataclasses.dataclass(frozen=True)
class TileAdaptersConfig:
    """A tower and the tiles that it sees.

    Attributes:
        encoder: of one tile, and of the view of the whole; features are those of its patches alone.
        grid: rows and columns of tiles.
        lora: adapters of the tower, one set for each tile; the view of the whole goes through the tower as it is. None:
            tiles do the same.
        across: layers of attention in windows of the size of a tile, every second shifted by half a tile, over the
            features of all tiles together; 0: there are none.
    """

    encoder: ViTConfig
    grid: tuple[int, int]
    lora: LoRAConfig | None = None
    across: int = 0

    kind: ClassVar[str] = "tile_adapters"

    def __post_init__(self):
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ConfigError(f"tile_adapters.grid must be rows and columns of at least 1, got {self.grid}")
        if self.encoder.packed or self.encoder.num_tokens() != self.encoder.num_patches:
            raise ConfigError(
                f"tile_adapters.encoder gives {self.encoder.num_tokens()} features, its grid has "
                f'{self.encoder.num_patches}: leave out class token and registers with feature_strategy "patches"'
            )
        if self.lora is not None and "gate" in self.lora.targets and not self.encoder.gated:
            raise ConfigError("tile_adapters.lora: the tower's MLPs have no gate; leave it out of the targets")
        if self.across < 0:
            raise ConfigError(f"tile_adapters.across must be at least 0, got {self.across}")

    @property
    def num_tiles(self) -> int:
        """Tiles besides the view of the whole."""
        return self.grid[0] * self.grid[1]

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.encoder.feature_width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (1 + tiles, H, W, 3): the view of the whole, then the tiles row by row."""
        return (1 + self.num_tiles, *self.encoder.item_shape)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image, of all its views."""
        return (1 + self.num_tiles) * self.encoder.num_tokens()

    def adapter_shapes(self) -> dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
        """ "attn" or "mlp" -> target -> axes of its kernel, inputs and outputs."""
        block = self.encoder.block
        wide, heads, hidden = (block.width,), (block.num_heads, block.head_dim), (block.mlp_width,)
        kernels = {"attn": dict.fromkeys(("q", "k", "v"), (wide, heads)) | {"o": (heads, wide)}}
        kernels["mlp"] = dict.fromkeys(("gate", "up"), (wide, hidden)) | {"down": (hidden, wide)}
        targets = () if self.lora is None else self.lora.targets
        return {
            half: {name: axes for name, axes in maps.items() if name in targets} for half, maps in kernels.items()
        }


class TileAdapters(nn.Module):
    """Views [B, I, 1 + tiles, H, W, 3] to features. Parameters: tower; adapters, leaves [tiles, L, ...]; across.

    Attributes:
        config: tower and tiles.
        dtype: compute dtype.
        remat: rematerialisation policy of the tower's blocks.
    """

    config: TileAdaptersConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.tower = ViT(c.encoder, self.dtype, self.remat)
        if c.lora is not None:
            self.adapters = self.param("adapters", self._fresh)
        if c.across:
            heads = c.encoder.num_heads
            self.across = AcrossTiles(c.feature_width, heads, c.encoder.grid_size, c.across, self.dtype)

    def _fresh(self, rng: jax.Array) -> Any:
        """Adapters that change nothing yet: `lora_b` is zero."""
        c, tree, number = self.config, {}, 0
        first = c.num_tiles, c.encoder.num_layers
        for half, maps in c.adapter_shapes().items():
            for name, (inputs, outputs) in maps.items():
                number += 1
                a = fan_in_normal(inputs)(jax.random.fold_in(rng, number), (*first, *inputs, c.lora.rank))
                b = jnp.zeros((*first, c.lora.rank, *outputs))
                boxed = lambda leaf, *axes: nn.LogicallyPartitioned(leaf, (None, "layers", *axes))
                tree.setdefault(half, {})[name] = {
                    "lora_a": boxed(a, *(None,) * len(inputs), "rank"),
                    "lora_b": boxed(b, "rank", *(None,) * len(outputs)),
                }
        return tree

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """Views [B, 1 + tiles, H, W, 3] -> "last_hidden_state" [B, (1 + tiles) * N, D]."""
        c = self.config
        if values.shape[1:] != c.item_shape:
            raise ValueError(f"images come as views {list(c.item_shape)}, got {list(values.shape[1:])}")
        whole = self.tower(Media(values[:, :1])).values[:, None]
        tiles = jnp.moveaxis(values[:, 1:], 1, 0)
        if c.lora is None:
            features = jnp.stack([self.tower(Media(tile[:, None])).values for tile in tiles], axis=1)
        else:
            tower = self.tower.variables["params"]
            module = ViT(c.encoder, self.dtype, self.remat, parent=None)

            # One tile after the other: merged kernels are a copy of the tower each.
            def one(views):
                adapter, tile = views
                merged = merge_lora({**tower, "blocks": beside(tower["blocks"], adapter)}, c.lora)
                return module.apply({"params": merged}, Media(tile[:, None])).values

            features = jnp.moveaxis(jax.lax.map(one, (self.adapters, tiles)), 0, 1)
        if c.across:
            features = self.across(features, c.grid)
        features = jnp.concatenate([whole, features], axis=1)
        return {"last_hidden_state": features.reshape(len(values), -1, c.feature_width)}

    def __call__(self, media: Media) -> Media:
        """Raw images -> features [B, I * (1 + tiles) * N, D], of the whole and of each tile.

        Raises:
            ValueError: other views than the config says.
        """
        c, (batch, items) = self.config, media.values.shape[:2]
        out = self.run(media.values.reshape(batch * items, *media.values.shape[2:]))["last_hidden_state"]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), c.num_tokens(), axis=1)
        values = out.reshape(batch, -1, c.feature_width)
        return media.replace(values=values, segment_ids=segments, stage="encoded")

    def create(self, values: jax.Array) -> Any:
        """Touches every parameter once: what `init` runs. values [B, 1 + tiles, H, W, 3]."""
        c = self.config
        made = self.tower.create(values[:, 0])
        if c.across:
            self.across(jnp.zeros((1, c.num_tiles, c.encoder.num_tokens(), c.feature_width)), c.grid)
        return made


def beside(blocks: Any, adapter: Any) -> Any:
    """Stacked blocks with an adapter's leaves laid beside the kernels that they adapt."""
    if not isinstance(blocks, dict):
        return blocks
    laid = {key: beside(value, adapter.get(key, {})) for key, value in blocks.items()}
    return laid | {key: leaf for key, leaf in adapter.items() if key in ("lora_a", "lora_b")}
