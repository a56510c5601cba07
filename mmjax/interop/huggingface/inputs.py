"""Arrays as transformers' processors give them -> items of our ports, and where each stands in the text.

Which names a model takes follows from its parts, not from its family: images of one size, images in tiles with
their sizes, videos as frames, patches packed with their grids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.config import nearest
from mmjax.data.contracts import Media, TextStream
from mmjax.data.items import Item, MediaSize, TokenPlanError, arranged, room_for, run_of, stack_items
from mmjax.data.patches import pack_patches
from mmjax.data.positions import Run, axis_positions
from mmjax.encoders.raw_patches import RawPatchesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.qformer import QFormerConfig
from mmjax.projectors.tiles import TilesConfig

# Which images a token sees, where they are read inside the backbone.
SEEN_ITEMS = "image_attention_mask"
# What may come for each port: the values, and what says their sizes.
NAMES = {
    "image": ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images", "pixel_attention_mask", SEEN_ITEMS),
    "video": ("pixel_values_videos", "image_sizes_videos", "video_grid_thw", "second_per_grid_ts"),
    "audio": ("input_features", "feature_attention_mask"),
}
# What a Q-Former reads beside the media of any port.
INSTRUCTION = ("qformer_input_ids", "qformer_attention_mask")
# Other names of the same.
ALIASES = {"pixel_values_images": "pixel_values", "image_patches": "pixel_values"}
# What processors give besides, and what follows from input_ids: taken and not read.
IMPLIED = ("mm_token_type_ids", "image_patches_indices")
# What says which places of the text are an image's, where no token does (KOSMOS-2): [B, T], 1 there.
MARK = "image_embeds_position_mask"
# What says which tokens see each other both ways, see token_types.py.
TOKEN_TYPES = "token_type_ids"
MEDIA_NAMES = (
    *(name for names in NAMES.values() for name in names), *INSTRUCTION, *ALIASES, *IMPLIED, MARK, TOKEN_TYPES,
)  # fmt: skip

Rows = list[list[Item]]


class Placed(NamedTuple):
    """Media and where they stand.

    index: int32 [B, T], which media token stands at each place, -1 for text; None where there are no media.
    media: port -> Media. runs: for each row its items from left to right.
    attention: bool [B, T, I], which items that are read inside the backbone each token sees; None: there are none, or
    all are seen.
    """

    index: np.ndarray | None
    media: dict[str, Media]
    runs: list[list[Run]]
    attention: np.ndarray | None = None


def read_media(config: MultimodalLMConfig, tokens: np.ndarray, given: Mapping[str, Any]) -> Placed:
    """Media of every port, and which of their tokens stands at each place of the text.

    Args:
        config: of the model.
        tokens: int [B, T], each item as a run of its port's placeholder token, one for each token it becomes.
        given: name -> array, of MEDIA_NAMES.

    Raises:
        ValueError: a name that the model has no port for, or values of a wrong shape.
        TokenPlanError: placeholders and items that do not fit, with the row and both counts.
    """
    given = {
        ALIASES.get(name, name): value for name, value in given.items() if value is not None and name not in IMPLIED
    }
    instruction = {name: given.pop(name) for name in INSTRUCTION if name in given}
    if MARK in given:
        tokens = _marked(config, tokens, given.pop(MARK))
    if "video" in config.encoders and "image" not in config.encoders and "pixel_values_videos" not in given:
        # InstructBLIP's processor of videos calls their frames images.
        given = {"pixel_values_videos" if name == "pixel_values" else name: given[name] for name in given}
    for name in given:
        if name not in MEDIA_NAMES:
            raise ValueError(f"unknown input {name!r}.{nearest(name, MEDIA_NAMES)}")
        port = next(port for port, names in NAMES.items() if name in names)
        if not config.encoders:
            raise ValueError(f"{name}: this model takes no {port}s: it has no encoder")
        if port not in config.encoders:
            raise ValueError(
                f"{name}: the model has no port {port!r}, only {', '.join(config.encoders)}: build the Batch by hand"
            )
    if instruction and not any(reads_text(config, port) for port in config.encoders):
        raise ValueError(f"{', '.join(instruction)}: this model has no Q-Former that reads an instruction")
    if SEEN_ITEMS in given and "image" not in config.inside:
        raise ValueError(f"{SEEN_ITEMS}: the images of this model stand in its text, it has no port inside for them")
    index = np.full(tokens.shape, -1, np.int32)
    media, start = {}, 0
    runs: list[list[Run]] = [[] for _ in tokens]
    inside: dict[str, Media] = {}
    attention = []
    for port in config.inside:
        names = NAMES.get(port, ())
        if any(name in given for name in names):
            inside[port], seen = read_inside(config, port, tokens.shape, {name: given.get(name) for name in names})
            attention.append(seen)
    for port in config.encoders:
        if port in config.inside:
            continue
        names = NAMES.get(port, ())
        at = tokens == config.media_tokens[port]
        counts = at.sum(axis=1)
        items = read_items(config, port, {name: given[name] for name in names if name in given}, counts)
        rows = share_out(config, port, counts, items)
        if not items:
            continue
        layout, room = config.layout(port), room_for(rows)
        media[port] = stack_items(rows, room, layout)
        if reads_text(config, port):
            media[port] = media[port].replace(text=read_instruction(config.projectors[port], len(tokens), instruction))
        for row, own in enumerate(rows):
            starts = np.flatnonzero(at[row])[np.cumsum([0, *(item.tokens for item in own)])[:-1]] if own else ()
            runs[row] += [
                run_of(int(first), item.tokens, item.size, layout) for first, item in zip(starts, own, strict=True)
            ]
        index = np.where(at, start + np.cumsum(at, axis=1, dtype=np.int32) - 1, index)
        start += layout.row_tokens(room)
    seen = np.concatenate(attention, axis=2) if attention else None
    return Placed(index if media else None, {**media, **inside}, [sorted(row) for row in runs], seen)


def read_inside(
    config: MultimodalLMConfig, port: str, shape: tuple[int, int], given: Mapping[str, Any]
) -> tuple[Media, np.ndarray]:
    """Items that are read inside the backbone, and bool [B, T, I], which of them each token sees.

    Args:
        config: of the model.
        port: of the items.
        shape: B and T of the text.
        given: name -> array or None: the values [B, I, ...], as many a row, and of images image_attention_mask
            [B, T, I]; without it every token sees all.

    Raises:
        ValueError: values or a mask that are not of these shapes.
    """
    name, encoder = NAMES[port][0], config.encoders[port]
    values = given[name]
    if values is None or np.ndim(values) != len(encoder.item_shape) + 2 or len(values) != shape[0]:
        raise ValueError(
            f"{name} must be [B, I, ...] with a row for each of the {shape[0]} rows of text and items of "
            f"{list(encoder.item_shape)}, got {None if values is None else np.shape(values)}"
        )
    rows, items = np.shape(values)[:2]
    values = raw_values(name, np.reshape(values, (-1, *np.shape(values)[2:])), encoder)
    numbers = np.broadcast_to(np.arange(1, items + 1, dtype=np.int32), (rows, items))
    seen = given.get(SEEN_ITEMS)
    seen = np.ones((*shape, items), bool) if seen is None else np.asarray(seen) > 0
    if seen.shape != (*shape, items):
        raise ValueError(
            f"{SEEN_ITEMS} is {seen.shape}; {rows} rows of {shape[1]} tokens and {items} {port}s make "
            f"{(*shape, items)}"
        )
    return Media(values.reshape(rows, items, *values.shape[1:]), numbers), seen


def _marked(config: MultimodalLMConfig, tokens: np.ndarray, mark: Any) -> np.ndarray:
    """The tokens [B, T] with the image's placeholder where `mark` [B, T] says so."""
    mark = np.asarray(mark)
    if mark.shape != tokens.shape or "image" not in config.media_tokens:
        raise ValueError(
            f"{MARK} is {mark.shape}, input_ids is {tokens.shape}, and the model's ports are {list(config.encoders)}: "
            'both must be [B, T], and there must be a port "image"'
        )
    return np.where(mark > 0, config.media_tokens["image"], tokens)


def reads_text(config: MultimodalLMConfig, port: str) -> bool:
    """Whether the projector of a port reads a text beside the media."""
    projector = config.projectors.get(port)
    return isinstance(projector, QFormerConfig) and projector.vocab_size is not None


def read_instruction(config: QFormerConfig, rows: int, given: Mapping[str, Any]) -> TextStream:
    """What a Q-Former reads beside the media of each row, in the tokens of its own tokenizer.

    Args:
        config: of the Q-Former.
        rows: B.
        given: qformer_input_ids int [B, T], and qformer_attention_mask [B, T] where not all are seen.

    Raises:
        ValueError: there is none, or not one a row, or one that the Q-Former has no room or no rows for.
    """
    ids_name, mask_name = INSTRUCTION
    if ids_name not in given:
        raise ValueError(f"the Q-Former reads an instruction beside the media: give {ids_name}, int [B, T]")
    tokens = integers(ids_name, given[ids_name])
    mask = integers(mask_name, given.get(mask_name, np.ones_like(tokens)))
    if len(tokens) != rows or mask.shape != tokens.shape:
        raise ValueError(
            f"{ids_name} is {tokens.shape} and {mask_name} {mask.shape}: both must be [B, T], one row for each of the "
            f"{rows} of input_ids"
        )
    if tokens.shape[1] > config.max_positions:
        raise ValueError(f"{ids_name} has {tokens.shape[1]} tokens, the Q-Former takes {config.max_positions} at most")
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise ValueError(f"{ids_name}: {outside[0]} is outside the Q-Former's vocabulary of {config.vocab_size}")
    # Places are counted from the first column on, padding or not.
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TextStream(tokens, positions, (mask > 0).astype(np.int32))


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


def share_out(config: MultimodalLMConfig, port: str, counts: np.ndarray, items: Sequence[Item]) -> Rows:
    """The items of each row of text, from how many placeholders it has.

    Raises:
        TokenPlanError: placeholders that are no whole number of items, or more or fewer than the items.
    """
    rows: Rows = []
    left = list(items)
    layout = config.layout(port)
    fixed = layout.arrange is None and not layout.packed
    equal = {item.tokens for item in items} or ({config.num_tokens(port)} if fixed else set())
    if len(equal) == 1:
        (size,) = equal
        for row, count in enumerate(counts):
            if count % size:
                raise TokenPlanError(
                    f"row {row}: {count} placeholder tokens are no whole number of {port}s of {size} tokens each"
                )
        if counts.sum() != len(items) * size:
            per_row = ", ".join(str(count // size) for count in counts)
            raise TokenPlanError(
                f"the placeholders are those of {per_row} {port}s a row, but there are {len(items)} {port}s"
            )
    for row, count in enumerate(counts):
        own, used = [], 0
        while used < count and left:
            own.append(left.pop(0))
            used += own[-1].tokens
        if used != count:
            taken = ", ".join(str(item.tokens) for item in own) or "none"
            raise TokenPlanError(
                f"row {row}: {count} placeholder tokens, but its {port}s, {len(own)} of them, become {taken}"
            )
        rows.append(own)
    if left:
        raise TokenPlanError(f"{len(items) - len(left)} {port}s have placeholders, but there are {len(items)} {port}s")
    return rows


def counted_positions(config: MultimodalLMConfig, valid: np.ndarray, runs: Sequence[Sequence[Run]]) -> np.ndarray:
    """Positions int32 [B, T] of what is no padding, or [B, T, 3] where the backbone's have axes."""
    if getattr(config.backbone, "rope_sections", ()):
        return np.stack([axis_positions(row, items) for row, items in zip(valid, runs, strict=True)])
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)


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
