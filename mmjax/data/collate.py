"""From samples of many lengths to one padded batch of a static shape, in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.data.items import Room, TokenPlanError, arranged, stack_items
from mmjax.data.samples import Bucket, Sample
from mmjax.data.targets import count_of, stacked
from mmjax.data.token_plan import TokenPlan


def collate(
    samples: Sequence[Sample],
    plan: TokenPlan,
    pad_id: int = 0,
    pad_rows_to: int | None = None,
    bucket: Bucket | None = None,
) -> Batch:
    """Pads samples on the right into one batch with the stream "text", or "query" and "decoder".

    Args:
        samples: planned samples with their media arrays attached.
        plan: the plan they were made with.
        pad_id: the token in padding.
        pad_rows_to: B; rows beyond the samples are padding through and through.
        bucket: the shape to fill; None takes the smallest that fits.

    Returns:
        tokens, positions, segment_ids, media_index [B, T] int32, loss_weights [B, T] float32, loss_positions
        [B, M] int32. Padding has segment_ids 0, media_index -1, loss_weights 0 and positions 0.
        For each port with I > 0: Media with raw values float32 [B, I, H, W, 3] and segment_ids [B, I], or
        encoded values [B, I * N, D] and segment_ids [B, I * N]; original_size int32 [B, I, 2] and, where an
        item has one, grid [B, I, 3], zero where unknown. Padding items come last, as zeros, in segment 0.
        Item i of a port with n tokens an item stands in rows i * n and following of its projected tokens.
        Ports that are read inside the backbone come with media_attention [B, T, I]. For an encoder-decoder the stream
        is "query", and where there are answers "decoder" holds them, start token first. Where generators are to draw,
        targets holds by port what their losses compare with, "weights" [B, R] 0 for padding.

    Raises:
        SampleTooLong: no bucket fits a sample.
        TokenPlanError: a sample lacks its arrays, items of one port differ in shape or in tokens, or the
            bucket is too small; the message names the sample.
    """
    fixed, bucket = bucket is not None, bucket or plan.bucket(samples)
    rows = len(samples) if pad_rows_to is None else pad_rows_to
    if rows < len(samples):
        raise TokenPlanError(f"{len(samples)} samples do not fit {rows} rows")
    _check_fit(samples, bucket)
    shape = (rows, bucket.length)
    tokens = np.full(shape, pad_id, np.int32)
    positions, segment_ids = np.zeros((*shape, 3) if plan.axes else shape, np.int32), np.zeros(shape, np.int32)
    groups, both_ways = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_weights = np.zeros(shape, np.float32)
    media_index = np.full(shape, -1, np.int32)
    starts = _port_starts(samples, plan, bucket)
    for b, sample in enumerate(samples):
        end = len(sample)
        tokens[b, :end] = sample.tokens
        positions[b, :end] = sample.positions
        segment_ids[b, :end] = 1
        loss_weights[b, :end] = sample.loss_weights
        media_index[b, :end] = _shift_ports(sample, plan, starts)
        if sample.attend_group is not None:
            groups[b, :end] = sample.attend_group
        if sample.bidirectional_group is not None:
            both_ways[b, :end] = sample.bidirectional_group
    seen = None if not plan.inside else _seen(samples, plan, bucket, shape)
    text = TextStream(
        tokens=tokens,
        positions=positions,
        segment_ids=segment_ids,
        loss_weights=loss_weights,
        media_index=media_index,
        attend_group=groups if bucket.grouped else None,
        bidirectional_group=None if plan.bidirectional == "none" else both_ways,
        media_attention=seen,
        loss_positions=target_positions(loss_weights, bucket.targets),
    )
    media = {}
    for port, items in bucket.items:
        if items and port in dict(bucket.entries):
            media[port] = _spread(samples, plan, port, rows, bucket)
        elif items:
            media[port] = _stack(samples, plan, port, rows, items)
        if port in plan.instructed and port in media:
            media[port] = media[port].replace(text=_instructions(samples, rows, plan.instructed[port], fixed))
    drawn = _drawn(samples, plan, rows, bucket)
    if plan.start_token is None:
        return Batch(texts={"text": text}, media=media, targets=drawn)
    texts = {"query": text.replace(loss_weights=None, loss_positions=None)}
    if bucket.answer:
        texts["decoder"] = _answers(samples, plan, rows, bucket, pad_id)
    return Batch(texts=texts, media=media, targets=drawn)


def _drawn(samples: Sequence[Sample], plan: TokenPlan, rows: int, bucket: Bucket) -> dict[str, Any] | None:
    """What the losses of generators compare with: port -> arrays, "weights" [B, R] among them; None without any."""
    out = {}
    for port, count in bucket.drawn:
        if not count:
            continue
        for sample in samples:
            number = count_of(plan.drawn[port], sample.targets[port]) if port in sample.targets else 0
            if number > count:
                raise TokenPlanError(f"{sample.name}: {number} {port} items to draw do not fit the bucket's {count}")
        out[port] = stacked(plan.drawn[port], rows, count, [sample.targets.get(port) for sample in samples])
    return out or None


def _answers(samples: Sequence[Sample], plan: TokenPlan, rows: int, bucket: Bucket, pad_id: int) -> TextStream:
    """What an encoder-decoder writes, each answer behind the start token; a row without one is padding."""
    shape = (rows, bucket.answer)
    tokens, segments = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    for b, sample in enumerate(samples):
        end = sample.num_written
        if not end:
            continue
        tokens[b, 0], tokens[b, 1:end], segments[b, :end] = plan.start_token, sample.answer, 1
        weights[b, 1:end] = sample.answer_weights
    positions = np.broadcast_to(np.arange(bucket.answer, dtype=np.int32), shape) * segments
    return TextStream(
        tokens, positions, segments, loss_weights=weights, loss_positions=target_positions(weights, bucket.targets)
    )


def _instructions(samples: Sequence[Sample], rows: int, most: int, fixed: bool) -> TextStream:
    """What a projector reads beside the media of each row, at most `most` tokens; `fixed`: room for so many."""
    found = [() if sample.instruction is None else sample.instruction for sample in samples]
    for sample, ids in zip(samples, found, strict=True):
        if len(ids) > most:
            raise TokenPlanError(f"{sample.name}: an instruction of {len(ids)} tokens, the projector takes {most}")
    longest = max(map(len, found), default=0)
    length = most if fixed else min(most, max(16, 1 << max(longest - 1, 0).bit_length()))
    tokens, segments = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for b, ids in enumerate(found):
        tokens[b, : len(ids)], segments[b, : len(ids)] = ids, 1
    return TextStream(tokens, np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape), segments)


def _seen(samples: Sequence[Sample], plan: TokenPlan, bucket: Bucket, shape: tuple[int, int]) -> np.ndarray | None:
    """bool [B, T, I] of the inside ports that the batch has items of; None if it has none."""
    room = {port: items for port, items in bucket.items if port in plan.inside and items}
    if not room:
        return None
    seen = np.zeros((*shape, sum(room.values())), bool)
    for b, sample in enumerate(samples):
        start, column = 0, 0
        for port in plan.inside:
            count = len(sample.item_tokens.get(port, ()))
            own = sample.media_attention[:, column : column + count]
            seen[b, : len(sample), start : start + count] = own
            start, column = start + room.get(port, 0), column + count
    return seen


def target_positions(weights: np.ndarray, capacity: int) -> np.ndarray:
    """The places whose weight is not zero, int32 [B, capacity], filled up with -1.

    Args:
        weights: [B, T].
        capacity: at least as many as any row has.
    """
    out = np.full((len(weights), capacity), -1, np.int32)
    for row, places in zip(out, map(np.flatnonzero, weights), strict=True):
        row[: len(places)] = places
    return out


def _check_fit(samples: Sequence[Sample], bucket: Bucket) -> None:
    room = dict(bucket.items)
    for sample in samples:
        sizes = [(len(sample), bucket.length, "tokens"), (sample.num_targets, bucket.targets, "targets")]
        sizes.append((sample.num_written, bucket.answer, "tokens of an answer"))
        sizes += [(len(c), room.get(port, 0), f"{port} items") for port, c in sample.item_tokens.items()]
        for size, limit, what in sizes:
            if size > limit:
                raise TokenPlanError(f"{sample.name}: {size} {what} do not fit the bucket's {limit}")
        if sample.attend_group is not None and not bucket.grouped:
            raise TokenPlanError(
                f"{sample.name}: has an attend_group but its bucket has none; set grouped=True"
            )


def _port_starts(samples: Sequence[Sample], plan: TokenPlan, bucket: Bucket) -> dict[str, int]:
    """The row at which each port's projected tokens begin, I * n of them for every port before it."""
    starts, row = {}, 0
    standing = [(port, items) for port, items in bucket.items if port in plan.standing]
    for number, (port, items) in enumerate(standing):
        starts[port] = row
        later = standing[number + 1 :]
        if not items:
            continue
        if port in dict(bucket.entries):
            row += plan.layouts[port].row_tokens(_room(bucket, port))
            continue
        owners = {count: sample for sample in samples for count in sample.item_tokens.get(port, ())}
        if len(owners) > 1:
            (first, a), (second, b) = list(owners.items())[:2]
            raise TokenPlanError(
                f"{a.name} has {port} items of {first} tokens and {b.name} of {second}; "
                "the items of one port must become equally many tokens in one batch"
            )
        if any(sample.item_tokens.get(other) for sample in samples for other, _ in later):
            row += items * (next(iter(owners)) if owners else plan.count(port, None, None))
    return starts


def _shift_ports(sample: Sample, plan: TokenPlan, starts: dict[str, int]) -> np.ndarray:
    """The sample's media_index with each port's rows moved to where they stand in the batch."""
    index, row = sample.media_index.copy(), 0
    for port in plan.standing:
        count = sum(sample.item_tokens.get(port, ()))
        inside = (sample.media_index >= row) & (sample.media_index < row + count)
        index[inside] += starts[port] - row
        row += count
    return index


def _stack(samples: Sequence[Sample], plan: TokenPlan, port: str, rows: int, items: int) -> Media:
    shape = _item_shape(samples, plan, port)
    if shape is None:
        raise TokenPlanError(
            f"{samples[0].name if samples else 'an empty batch'}: {items} padding item(s) of port {port!r} "
            "are needed but no sample shows their shape: give it in item_shapes, or 0 in items"
        )
    values = np.zeros((rows, items, *shape), np.float32)
    segments = np.zeros((rows, items), np.int32)
    original_size = np.zeros((rows, items, 2), np.int32)
    grid = np.zeros((rows, items, 3), np.int32)
    parent = np.zeros((rows, items), np.int32)
    for b, sample in enumerate(samples):
        for i, array in enumerate(sample.media.get(port, ())):
            values[b, i] = array
            segments[b, i] = i + 1
        for i, size in enumerate(sample.media_sizes.get(port, ())):
            original_size[b, i] = size.original_size or 0
            grid[b, i] = size.grid or 0
            parent[b, i] = size.parent or 0
    part = port in plan.layouts and plan.layouts[port].parent is not None
    encoded = len(shape) == 2 and not _is_item(shape, plan, port)
    return Media(
        values=values.reshape(rows, items * shape[0], shape[1]) if encoded else values,
        segment_ids=np.repeat(segments, shape[0], axis=1) if encoded else segments,
        grid=grid if grid.any() else None,
        original_size=original_size,
        parent=parent if part else None,
        stage="encoded" if encoded else "raw",
    )


def _room(bucket: Bucket, port: str) -> Room:
    return Room(dict(bucket.entries)[port], dict(bucket.items)[port], bucket.length)


def _spread(samples: Sequence[Sample], plan: TokenPlan, port: str, rows: int, bucket: Bucket) -> Media:
    """Media of a port whose items are several entries, or patches."""
    layout, items = plan.layouts[port], []
    for sample in samples:
        arrays, sizes = sample.media.get(port, ()), sample.media_sizes.get(port, ())
        counts = sample.item_tokens.get(port, ())
        if len(arrays) != len(counts):
            raise TokenPlanError(f"{sample.name}: {len(counts)} {port} item(s) but {len(arrays)} array(s)")
        for array, size in zip(arrays, sizes, strict=True):
            planned = layout.entries(size.grid, size.original_size)
            if array.shape != (planned, *layout.item_shape):
                raise TokenPlanError(
                    f"{sample.name}: {port} item of shape {list(array.shape)}; planned was "
                    f"{[planned, *layout.item_shape]}"
                )
        items.append([arranged(*item, layout) for item in zip(arrays, counts, sizes, strict=True)])
    items += [[]] * (rows - len(samples))
    if not any(items):
        values = np.zeros((rows, _room(bucket, port).entries, *layout.item_shape), np.float32)
        grid = np.zeros((rows, _room(bucket, port).items, 3), np.int32)
        return Media(values, np.zeros(values.shape[:2], np.int32), grid if layout.packed else None)
    return stack_items(items, _room(bucket, port), layout)


def _item_shape(samples: Sequence[Sample], plan: TokenPlan, port: str) -> tuple[int, ...] | None:
    """The one shape of all the port's items, after checking them; None if there are none to tell."""
    shape, owner = plan.item_shapes.get(port), "item_shapes"
    for sample in samples:
        arrays, planned = sample.media.get(port, ()), len(sample.item_tokens.get(port, ()))
        if len(arrays) != planned:
            raise TokenPlanError(f"{sample.name}: {planned} {port} item(s) but {len(arrays)} array(s)")
        for array in arrays:
            if shape is None:
                shape, owner = array.shape, sample.name
            if array.shape != tuple(shape):
                raise TokenPlanError(
                    f"{sample.name}: {port} item of shape {list(array.shape)}; {owner} has {list(shape)}"
                )
            fits = array.ndim in (2, 3) or _is_item(array.shape, plan, port)
            if not fits or not np.issubdtype(array.dtype, np.floating):
                raise TokenPlanError(
                    f"{sample.name}: {port} item is {array.dtype} {list(array.shape)}; "
                    "expected floats, [H, W, 3] raw or [N, D] encoded"
                )
    return shape


def _is_item(shape: tuple[int, ...], plan: TokenPlan, port: str) -> bool:
    """Whether that is a raw item as the port's encoder takes it, such as a spectrogram, not features of one."""
    layout = plan.layouts.get(port)
    return layout is not None and tuple(shape) == tuple(layout.item_shape)
