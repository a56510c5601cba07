"""Media items of a batch, row by row, to the one Media of their port, in numpy.

An item is an image, a clip, a sound. It may be one entry of what its encoder takes (an image of a fixed size), several
(the tiles of an image, the frames of a video), or a run of patches among those of other items (native resolution).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.contracts import Media
from mmjax.data.positions import Run


class TokenPlanError(ValueError):
    """A sample whose text and media do not fit together; the message names the sample and both counts."""


class MediaSize(NamedTuple):
    """What the counting functions are told of an item, before any array exists.

    grid: (time, height, width) in patches, or None. original_size: (height, width) in pixels, or None.
    seconds: of video that one step in time of the grid takes, or None. parent: the number, from 1, of the item of
    another port that it is a part of, or None.
    """

    grid: tuple[int, int, int] | None = None
    original_size: tuple[int, int] | None = None
    seconds: float | None = None
    parent: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How the items of one port lie in a batch: plain functions that the model's config hands down.

    Attributes:
        item_shape: shape of one entry.
        tokens: entries of a row, padding included -> projected tokens of the row.
        entries: (grid, original_size) -> how many entries an item is; patches where they are packed.
        packed: whether items are runs of patches, not entries of an axis of their own.
        arrange: (grid, original_size) -> (order [M, K], weights or None), which of its projected tokens an item's
            LLM tokens are made of; None: as they come.
        leading: projected tokens that stand before those of a row's items.
        axes: (grid, seconds) -> an item's (time, height, width) in LLM tokens, and its positions a unit of time.
        each: LLM tokens of an item where all have as many, however many entries they are.
        parent: the port whose items those of this one are parts of, such as that of the images of regions.
    """

    item_shape: tuple[int, ...]
    tokens: Callable[[int], int]
    entries: Callable[[Any, Any], int] = lambda grid, original_size: 1
    packed: bool = False
    arrange: Callable[[Any, Any], tuple[np.ndarray, np.ndarray | None]] | None = None
    leading: int = 0
    axes: Callable[[Any, float | None], tuple[tuple[int, int, int], float]] | None = None
    each: int | None = None
    parent: str | None = None

    @property
    def per_entry(self) -> int:
        """Projected tokens that one entry becomes."""
        return self.tokens(1) - self.leading

    def row_tokens(self, room: "Room") -> int:
        """LLM tokens of a row, padding included."""
        if self.each is not None:
            return room.items * self.each
        return room.tokens if self.arrange is not None else self.tokens(room.entries)


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One item, as its encoder takes it.

    Attributes:
        values: float [entries, *shape of an entry], or packed patches [N, patch features].
        tokens: how many LLM tokens it becomes.
        size: its grid and original size, where known.
        order: int32 [tokens, K], which of its own projected tokens each LLM token is made of, -1 for the learned
            one that stands before all; None: as they come.
        order_weights: float32 [tokens, K], or None.
    """

    values: np.ndarray
    tokens: int
    size: MediaSize = MediaSize()
    order: np.ndarray | None = None
    order_weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Room:
    """The static shape of one port's Media in a batch.

    Attributes:
        entries: I entries a row, or N patches where they are packed.
        items: items a row.
        tokens: LLM tokens a row.
    """

    entries: int
    items: int
    tokens: int


def arranged(values: np.ndarray, tokens: int, size: MediaSize, layout: Layout) -> Item:
    """An item with the order that its layout says."""
    order, weights = layout.arrange(size.grid, size.original_size) if layout.arrange else (None, None)
    return Item(values, tokens if order is None else len(order), size, order, weights)


def run_of(start: int, item_tokens: int, size: MediaSize, layout: Layout | None) -> Run:
    """An item whose first token stands at `start`; one line of tokens unless its layout has axes."""
    if layout is None or layout.axes is None:
        return Run(start, (1, 1, item_tokens))
    return Run(start, *layout.axes(size.grid, size.seconds))


def room_for(rows: Sequence[Sequence[Item]]) -> Room:
    """The smallest room that holds the items of every row."""

    def most(count):
        return max((sum(map(count, items)) for items in rows), default=0)

    return Room(most(lambda item: len(item.values)), most(lambda item: 1), most(lambda item: item.tokens))


def stack_items(rows: Sequence[Sequence[Item]], room: Room, layout: Layout) -> Media:
    """Items of every row -> stage "raw".

    Args:
        rows: the items of each row of the batch; at least one row has one.
        room: the shape to fill.
        layout: of the port.

    Returns:
        values float32 [B, I, *shape] with segment_ids [B, I], or packed [B, N, F] with segment_ids [B, N]; grid
        [B, items, 3] and original_size [B, items, 2] where an item has one; order where the layout arranges.

    Raises:
        TokenPlanError: entries of several shapes, or more of something than there is room for.
    """
    first = next(item for items in rows for item in items)
    shape = first.values.shape[1:]
    values = np.zeros((len(rows), room.entries, *shape), np.float32)
    segments = np.zeros(values.shape[:2], np.int32)
    grid = np.zeros((len(rows), room.items, 3), np.int32)
    original = np.zeros((len(rows), room.items, 2), np.int32)
    for row, items in enumerate(rows):
        at = 0
        for number, item in enumerate(items):
            end = at + len(item.values)
            if item.values.shape[1:] != shape:
                raise TokenPlanError(
                    f"row {row}: item {number} has entries of shape {list(item.values.shape[1:])}, others {list(shape)}"
                )
            if end > room.entries or number >= room.items:
                raise TokenPlanError(
                    f"row {row}: {len(items)} items with {sum(len(i.values) for i in items)} entries do not fit "
                    f"{room.items} and {room.entries}"
                )
            values[row, at:end], segments[row, at:end] = item.values, number + 1
            grid[row, number] = item.size.grid or 0
            original[row, number] = item.size.original_size or 0
            at = end
    order, weights = (None, None) if layout.arrange is None else _orders(rows, room, layout)
    return Media(
        values,
        segments,
        grid if grid.any() else None,
        original if original.any() else None,
        order=order,
        order_weights=weights,
    )


def _orders(
    rows: Sequence[Sequence[Item]], room: Room, layout: Layout
) -> tuple[np.ndarray, np.ndarray | None]:
    """The items' own orders as one a row; the learned token, if there is one, is the row's first."""
    items = [item for row in rows for item in row]
    count = max(item.order.shape[1] for item in items)
    mixed = any(item.order_weights is not None for item in items)
    order = np.full((len(rows), room.tokens, count), -1, np.int32)
    weights = np.zeros(order.shape, np.float32)
    for row, own in enumerate(rows):
        at, start = 0, layout.leading
        for item in own:
            end, used = at + len(item.order), item.order.shape[1]
            if end > room.tokens:
                raise TokenPlanError(f"row {row}: more than {room.tokens} media tokens")
            order[row, at:end] = 0
            order[row, at:end, :used] = np.where(item.order < 0, 0, item.order + start)
            weights[row, at:end, :used] = (
                np.eye(1, used, dtype=np.float32) if item.order_weights is None else item.order_weights
            )
            at, start = end, start + len(item.values) * layout.per_entry
    return (order, weights) if mixed else (order[..., 0], None)
