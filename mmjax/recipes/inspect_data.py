"""`mmjax data`: what one record of a dataset becomes: tokens, media, and what the loss is taken on."""

import itertools
from typing import Any

import numpy as np

from mmjax.data.answers import join_answer
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.processor import Processor
from mmjax.data.samples import Sample
from mmjax.data.sources import Source

SHOWN = 200  # characters of one span


def inspect_record(source: Source, index: int, processor: Processor, image_root: str | None = None) -> str:
    """Record `index` of a source, read and planned as training does it, as lines of text.

    Raises:
        IndexError: no such record; the message says how many there are.
        ValueError, FileNotFoundError: what is wrong with the record, naming it.
    """
    if not 0 <= index < len(source):
        raise IndexError(f"there is no record {index}: the source has 0 to {len(source) - 1}")
    sample = processor.sample(parse_record(source[index], source.name(index), image_root))
    return describe_sample(sample, processor)


def describe_sample(sample: Sample, processor: Processor) -> str:
    """Length, bucket, media and loss of a sample, then every span of it."""
    bucket = processor.plan.bucket([sample])
    collate([sample], processor.plan, bucket=bucket)  # which raises what training would
    sample = join_answer(sample)
    media_tokens = int(np.count_nonzero(sample.media_index >= 0))
    lines = [
        sample.name,
        f"  {len(sample)} tokens: {len(sample) - media_tokens} of text, {media_tokens} of media; "
        f"{sample.num_targets} are targets of the loss",
        f"  bucket: {bucket.length} tokens, {bucket.targets} targets"
        + "".join(f", {count} {port}(s)" for port, count in bucket.items),
    ]
    for port, counts in sample.item_tokens.items():
        for item, count in enumerate(counts):
            size = sample.media_sizes[port][item].original_size
            pixels = "" if size is None else f"{size[1]} x {size[0]} pixels -> "
            shape = " x ".join(map(str, sample.media[port][item].shape))
            lines.append(f"  {port} {item}: {pixels}array {shape} -> {count} tokens")
    lines.append(f"  {'positions':>12}  {'':<6}what stands there (LOSS: the loss is taken on these tokens)")
    for start, stop, what in _spans(sample, processor):
        lines.append(f"  {f'{start}..{stop - 1}':>12}  {what}")
    return "\n".join(lines)


def _spans(sample: Sample, processor: Processor) -> list[tuple[int, int, str]]:
    """(start, stop, words) of runs of equal kind: an item of media, text without loss, text with loss."""
    items = [
        (port, item)
        for port, counts in sample.item_tokens.items()
        for item, count in enumerate(counts)
        for _ in range(count)
    ]

    def kind(position: int) -> Any:
        row = int(sample.media_index[position])
        return items[row] if row >= 0 else bool(sample.loss_weights[position])

    spans, start = [], 0
    for key, run in itertools.groupby(range(len(sample)), key=kind):
        stop = start + len(list(run))
        if isinstance(key, tuple):
            words = f"{'':<6}[{key[0]} {key[1]}: {stop - start} tokens]"
        else:
            ids = sample.tokens[start:stop].tolist()
            shown = repr(processor.tokenizer.decode(ids, skip_special=False))
            words = f"{'LOSS' if key else '':<6}{shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'}"
        spans.append((start, stop, words))
        start = stop
    return spans
