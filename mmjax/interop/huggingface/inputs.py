"""Arrays as transformers' processors give them -> media of our ports, and where each stands in the text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.config import nearest
from mmjax.data.contracts import Media
from mmjax.data.items import Item, TokenPlanError, room_for, run_of, stack_items
from mmjax.data.positions import Run, axis_positions
from mmjax.interop.huggingface.input_items import NAMES, SEEN_ITEMS, raw_values, read_items
from mmjax.interop.huggingface.instruction import INSTRUCTION, read_instruction, reads_text
from mmjax.model import MultimodalLMConfig

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
