"""LLaVA-NeXT (transformers' LlavaNextForConditionalGeneration): LLaVA with images in tiles.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llava_next
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.llava import projector_from_hf, projector_rows, projector_to_hf
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected, selection_to_hf
from mmjax.interop.table import Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.tiles import TilesConfig

# LlavaNextConfig's own, at the image size of its own tower.
RESOLUTIONS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def tiles_from_hf(hf: Mapping[str, Any], tower: ViTConfig, width: int, **options: Any) -> TilesConfig:
    """The projector of the port "image"; `options` are those of TilesConfig that config.json does not say alike."""
    resolutions = hf.get("image_grid_pinpoints") or RESOLUTIONS
    return TilesConfig(
        projector_from_hf(hf, tower.feature_width, width),
        tile_size=tower.image_size,
        grid_size=tower.grid_size,
        resolutions=tuple(tuple(size) for size in resolutions),
        **options,
    )


def tiles_to_hf(config: MultimodalLMConfig) -> Json:
    """What `tiles_from_hf` reads, and the placeholder.

    Raises:
        ConfigError: the port "image" does not take tiles.
    """
    tower, tiles = config.encoders.get(PORT), config.projectors.get(PORT)
    if not isinstance(tower, ViTConfig) or not isinstance(tiles, TilesConfig):
        raise ConfigError(f"transformers' LlavaNext takes images in tiles at the port {PORT!r}, this model has {tiles}")
    return {
        **projector_to_hf(tiles.projector),
        **selection_to_hf(tower),
        "image_grid_pinpoints": [list(size) for size in tiles.resolutions],
        "image_token_id": config.media_tokens[PORT],
        "image_token_index": config.media_tokens[PORT],
    }


def tiles_rows(config: MultimodalLMConfig) -> list[Row]:
    """The rows of projector and learned token."""
    rows = projector_rows(config.projectors[PORT].projector, f"projectors/{PORT}/each/")
    return [*rows, Row(f"projectors/{PORT}/newline", "image_newline")]


def image_token(hf: Mapping[str, Any], default: int) -> int:
    """The id of the image's placeholder."""
    return hf.get("image_token_id", hf.get("image_token_index", default))


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    tower = selected(hf, tower)
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: tiles_from_hf(hf, tower, width)},
        "media_tokens": {PORT: image_token(hf, 32000)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    if list(config.encoders) != [PORT]:
        raise ConfigError(f"transformers' LlavaNext has one image port, this model has {sorted(config.encoders)}")
    return tiles_to_hf(config)


FAMILY = VisionTextFamily(
    kind="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    read=_read,
    write=_write,
    rows=tiles_rows,
    pieces=("multi_modal_projector", "image_newline"),
)
