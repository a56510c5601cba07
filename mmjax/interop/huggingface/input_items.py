"""Arrays as transformers' processors give them -> items of one port.

Which names a model takes follows from its parts, not from its family: images of one size, images in tiles with
their sizes, videos as frames, patches packed with their grids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.items import Item, MediaSize, TokenPlanError, arranged
from mmjax.data.patches import pack_patches
from mmjax.encoders.raw_patches import RawPatchesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.tiles import TilesConfig

# Which images a token sees, where they are read inside the backbone.
SEEN_ITEMS = "image_attention_mask"
# What may come for each port: the values, and what says their sizes.
NAMES = {
    "image": ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images", "pixel_attention_mask", SEEN_ITEMS),
    "video": ("pixel_values_videos", "image_sizes_videos", "video_grid_thw", "second_per_grid_ts"),
    "audio": ("input_features", "feature_attention_mask"),
}


def read_items(config: MultimodalLMConfig, port: str, given: Mapping[str, Any], counts: Sequence[int]) -> list[Item]:
    """The items of one port, in the order of their placeholders in the whole batch; `counts` are those of each row."""
    if not given:
        return []
    values = next((given[name] for name in NAMES[port][:1] if name in given), None)
    if values is None:
        raise ValueError(f"{', '.join(given)} without {NAMES[port][0]}")
    projector = config.projectors[port]
    if isinstance(config.encoders[port], RawPatchesConfig):
        return _raw_patches(config.encoders[port], values, counts)
    if isinstance(projector, TilesConfig):
        read = _images_in_tiles if projector.frames == "none" else _videos
        return read(config, port, given)
    encoder = config.encoders[port]
    if isinstance(encoder, ViTConfig) and encoder.resize_positions == "floor":
        return _padded(config, port, values, given.get("pixel_attention_mask"))
    grids = next((given[name] for name in NAMES[port] if name.endswith("grid_thw") and name in given), None)
    if grids is None and getattr(encoder, "packed", False):
        return _cropped(config, port, values, given.get("image_sizes"))
    if grids is not None:
        return _packed(config, port, values, grids, given.get("second_per_grid_ts"))
    return _fixed(config, port, values)


def _fixed(config: MultimodalLMConfig, port: str, values: Any) -> list[Item]:
    """Items of one shape: [I, ...] of the whole batch, or [B, I, ...] with as many in every row."""
    encoder = config.encoders[port]
    if np.ndim(values) == len(encoder.item_shape) + 2:
        values = np.reshape(values, (-1, *np.shape(values)[2:]))
    values = raw_values(NAMES[port][0], values, encoder)
    if len(encoder.item_shape) == 4 and values.shape[1] != encoder.item_shape[0]:
        raise ValueError(
            f"{NAMES[port][0]} hold {values.shape[1]} frames a video, the encoder takes {encoder.item_shape[0]}"
        )
    return [Item(value[None], config.num_tokens(port)) for value in values]


def _images_in_tiles(config: MultimodalLMConfig, port: str, given: Mapping[str, Any]) -> list[Item]:
    """pixel_values [I, tiles, 3, H, W], padded to the most tiles, or a list of [tiles, 3, H, W]; image_sizes [I, 2]."""
    projector, layout = config.projectors[port], config.layout(port)
    pixels, sizes = given["pixel_values"], given.get("image_sizes")
    if sizes is None:
        raise ValueError("pixel_values of images in tiles need image_sizes, [I, 2] of (height, width)")
    sizes, items = np.asarray(sizes), []
    if len(sizes) != len(pixels):
        raise ValueError(f"pixel_values are of {len(pixels)} images, image_sizes of {len(sizes)}")
    together = given.get("batch_num_images")
    whole = [False] * len(sizes)
    if together is not None:
        whole = [count > 1 for count in np.asarray(together).tolist() for _ in range(count)]
    for number, (tiles, size, alone) in enumerate(zip(pixels, sizes.tolist(), whole, strict=True)):
        wanted = 1 if alone else projector.num_tiles(size)
        tiles = channels_last("pixel_values", np.asarray(tiles, np.float32))
        if len(tiles) < wanted:
            raise ValueError(
                f"image {number} of {size[0]} x {size[1]} pixels has {wanted} tiles, pixel_values hold {len(tiles)}"
            )
        grid = (1, projector.grid_size, projector.grid_size) if alone else None
        items.append(arranged(tiles[:wanted], 0, MediaSize(grid, tuple(size)), layout))
    return items


def _videos(config: MultimodalLMConfig, port: str, given: Mapping[str, Any]) -> list[Item]:
    """pixel_values_videos [I, frames, 3, H, W]."""
    side, layout, items = config.projectors[port].grid_size, config.layout(port), []
    for video in given["pixel_values_videos"]:
        frames = channels_last("pixel_values_videos", np.asarray(video, np.float32))
        items.append(arranged(frames, 0, MediaSize((len(frames), side, side)), layout))
    return items


def _padded(config: MultimodalLMConfig, port: str, values: Any, mask: Any) -> list[Item]:
    """pixel_values [B, I, 3, H, W] and pixel_attention_mask [B, I, H, W]; images of zeros alone are padding.

    An image fills the corner at the top left; patches that it does not fill are left out.
    """
    encoder, values = config.encoders[port], np.asarray(values, np.float32)
    images = channels_last("pixel_values", values.reshape(-1, *values.shape[-3:]))
    seen = np.ones(images.shape[:3], bool) if mask is None else np.asarray(mask) > 0
    if seen.size != images[..., 0].size:
        raise ValueError(f"pixel_attention_mask is {np.shape(mask)}, pixel_values are {values.shape}")
    items, size = [], encoder.patch_size
    for number, (image, there) in enumerate(zip(images, seen.reshape(images.shape[:3]), strict=True)):
        if not image.any():
            continue
        height, width = int(there[:, 0].sum()), int(there[0].sum())
        if there.sum() != height * width or not there[:height, :width].all():
            raise ValueError(f"pixel_attention_mask of image {number} is no rectangle at the top left")
        rows, columns = height // size, width // size
        if encoder.packed:
            patches = image[: rows * size, : columns * size].reshape(rows, size, columns, size, 3).swapaxes(1, 2)
            grid = (1, rows, columns)
            items.append(Item(patches.reshape(rows * columns, -1), config.num_tokens(port, grid), MediaSize(grid)))
        elif (height, width) != encoder.item_shape[:2]:
            raise ValueError(
                f"image {number} is of {height} x {width} pixels, the encoder takes tiles of "
                f"{encoder.image_size} x {encoder.image_size}"
            )
        else:
            items.append(Item(image[None, :height, :width], config.num_tokens(port)))
    return items


def _cropped(config: MultimodalLMConfig, port: str, values: Any, sizes: Any) -> list[Item]:
    """pixel_values [I, 3, H, W] of images that fill the corner at the top left, and their image_sizes [I, 2]."""
    encoder, items = config.encoders[port], []
    shape = None if sizes is None else np.shape(sizes)
    if shape != (len(values), 2):
        raise ValueError(
            f"{NAMES[port][0]} of images of any shape come packed with their grids, or with image_sizes [I, 2] of "
            f"(height, width); here are {len(values)} images and image_sizes of shape {shape}"
        )
    images = channels_last(NAMES[port][0], values)
    for image, (height, width) in zip(images, np.asarray(sizes).tolist(), strict=True):
        patches, grid = pack_patches(
            image[None, :height, :width], encoder.patch_size, encoder.temporal_patch_size, encoder.merge_size
        )
        items.append(Item(patches, config.num_tokens(port, grid), MediaSize(grid)))
    return items


def _packed(config: MultimodalLMConfig, port: str, values: Any, grids: Any, seconds: Any) -> list[Item]:
    """Patches [N of all items, F] with their grids [I, 3]; `seconds` [I] of video that one step in time takes."""
    values, grids = np.asarray(values, np.float32), np.asarray(grids)
    if seconds is not None and len(seconds) != len(grids):
        raise ValueError(f"second_per_grid_ts has {len(seconds)} numbers, but there are {len(grids)} grids")
    if config.frames_apart and port == "video":
        # No frame sees another in the tower either: each is an item of its own, whose place in time the text says.
        grids, seconds = np.repeat(grids * [0, 1, 1] + [1, 0, 0], grids[:, 0], axis=0), None
    counts = grids.prod(axis=1)
    if values.ndim != 2 or counts.sum() != len(values):
        raise ValueError(
            f"{NAMES[port][0]} must be [N, patch features] with as many patches as the grids {grids.tolist()} have, "
            f"{counts.sum()}; got shape {values.shape}"
        )
    parts = np.split(values, np.cumsum(counts)[:-1])
    seconds = [None] * len(grids) if seconds is None else np.asarray(seconds).tolist()
    return [
        Item(part, config.num_tokens(port, grid), MediaSize(grid, None, second))
        for part, grid, second in zip(parts, map(tuple, grids.tolist()), seconds, strict=True)
    ]


def _raw_patches(encoder: RawPatchesConfig, values: Any, counts: Sequence[int]) -> list[Item]:
    """Patches [N of the whole batch, F], [B, N, F], or a list of [N, F]; those of a row are one item."""
    parts = [np.asarray(part, np.float32) for part in values]
    width = encoder.feature_width
    if any(part.shape[-1:] != (width,) for part in parts):
        raise ValueError(f"pixel_values must be patches of {width} numbers, got shapes {[p.shape for p in parts[:9]]}")
    patches = np.concatenate([part.reshape(-1, width) for part in parts])
    if len(patches) != sum(counts):
        raise TokenPlanError(
            f"there are {len(patches)} patches, but {sum(counts)} placeholders: "
            f"{', '.join(map(str, counts))} in the rows"
        )
    rows = np.split(patches, np.cumsum(counts)[:-1])
    return [Item(row, len(row), MediaSize((1, 1, len(row)))) for row in rows if len(row)]


def raw_values(name: str, values: Any, encoder: Any) -> np.ndarray:
    """Items as an encoder takes them, float32 [I, *item_shape], from transformers' order of axes.

    Args:
        name: of the values, for messages.
        values: images or frames with channels first or last, spectrograms with bands or frames first, samples.
        encoder: the encoder's config.

    Raises:
        ValueError: they are not of its shape.
    """
    array, shape = np.asarray(values, np.float32), encoder.item_shape
    if len(shape) >= 3 and shape[-1] == 3:
        if array.ndim != len(shape) + 1:
            raise ValueError(f"{name} must have {len(shape) + 1} axes, items of {list(shape)}; got shape {array.shape}")
        images = channels_last(name, array.reshape(-1, *array.shape[-3:]))
        return images.reshape(*array.shape[:-3], *images.shape[1:])
    if isinstance(encoder, WhisperEncoderConfig):
        array = array.swapaxes(-1, -2)
    if array.ndim != len(shape) + 1:
        raise ValueError(f"{name} must be [I, {', '.join(map(str, shape))}], got shape {array.shape}")
    return array


def channels_last(name: str, values: np.ndarray) -> np.ndarray:
    """Images [I, 3, H, W] or [I, H, W, 3] -> [I, H, W, 3].

    Raises:
        ValueError: they are neither.
    """
    array = np.asarray(values, np.float32)
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]):
        raise ValueError(f"{name} must be [I, 3, H, W] or [I, H, W, 3], got shape {array.shape}")
    return array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array


def integers(name: str, values: Any) -> np.ndarray:
    """int32 [B, T].

    Raises:
        ValueError: they are not.
    """
    array = np.asarray(values)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers [B, T], got {array.dtype} of shape {array.shape}")
    return array.astype(np.int32)
