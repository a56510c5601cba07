"""The training pipeline: mixed, shuffled sources to batches that depend on the seed and the step alone.

Built on grain's random-access datasets. The order of records is a dataset of references, batched before it is
iterated, and step n is made from the n-th batch of references by a pure function. Hence any number of worker
processes gives the same batches, a run resumes at any step bit for bit without saved state, and each of
several hosts can take its rows of every global batch.
"""

import dataclasses
import functools
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.collate import collate
from mmjax.data.contracts import Batch
from mmjax.data.samples import Bucket, Sample, SampleTooLong
from mmjax.data.sources import Source, open_source
from mmjax.data.token_plan import TokenPlan

ToSample = Callable[[Mapping[str, Any], str], Sample]


class BadRecordsError(RuntimeError):
    """More bad records than the budget allows; `records` maps the name of each to what is wrong with it."""

    def __init__(self, records: Mapping[str, str], budget: int):
        self.records = dict(records)
        listed = "\n".join(f"  {name}: {reason}" for name, reason in records.items())
        super().__init__(f"{len(records)} bad record(s), but skip_budget is {budget}:\n{listed}")


@dataclasses.dataclass
class PipelineCounters:
    """What has come out so far; of several processes, each counts its own rows.

    Attributes:
        batches, samples: how many came out.
        skipped: how often a bad record was replaced. bad: name -> reason, each bad record once.
        too_long: how often a sample longer than the longest bucket was replaced (plan.too_long "skip").
        tokens, slots: tokens in the batches, and how many there is room for.
        buckets: how many batches had each static shape; their number bounds how often a step compiles.
        wait_seconds, last_wait_seconds: how long the caller waited for batches, in all and for the last.
    """

    batches: int = 0
    samples: int = 0
    skipped: int = 0
    too_long: int = 0
    tokens: int = 0
    slots: int = 0
    wait_seconds: float = 0.0
    last_wait_seconds: float = 0.0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    buckets: Counter = dataclasses.field(default_factory=Counter)


def make_pipeline(
    sources: Sequence[Any],
    to_sample: ToSample,
    plan: TokenPlan,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: float | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    skip_budget: int = 0,
    pad_id: int = 0,
    fixed_shape: bool | None = None,
    buffer: int = 2,
) -> "Pipeline":
    """Makes the pipeline over one or more sources.

    Args:
        sources: sources, or what `open_source` takes; or all of them as pairs (source, weight). Without
            weights the records of all sources are shuffled together, each once an epoch. With weights each
            source is shuffled and repeated for itself and they are mixed evenly in these proportions, rounded
            to a hundredth of the smallest.
        to_sample: (record, name) -> Sample; raises on a bad record. Picklable if workers > 0.
        plan: the token plan that `to_sample` uses.
        batch_size: rows of the global batch, over all processes.
        seed: decides the order, anew each epoch.
        epochs: how many times as many records as the sources hold; None never ends. The last batch is filled
            up with rows of padding.
        workers: processes that make batches; 0 makes them in a thread of this process.
        process_index, process_count: this process makes rows [i * b, (i + 1) * b) of every global batch, with
            b = batch_size / process_count.
        skip_budget: how many different bad records may be replaced, each by the next good one of its source.
            A run that resumes starts with a full budget.
        pad_id: the token in padding.
        fixed_shape: every batch has the plan's largest shape, so that hosts need not agree on one. None does
            so for more than one process.
        buffer: batches made ahead, by each worker.

    Raises:
        ValueError: sizes, weights or counts that make no sense.
    """
    specs = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    paired = [
        isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[1], (int, float)) for spec in specs
    ]
    if not specs or any(paired) != all(paired):
        raise ValueError(
            f"sources: expected sources, or all as pairs (source, weight), got {len(specs)} mixed"
        )
    weights = [float(spec[1]) for spec in specs] if all(paired) else None
    if weights and not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"sources: weights must be positive numbers, got {weights}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} cannot be split over {process_count} process(es)")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not one of {process_count} process(es)")
    opened = [open_source(spec[0] if weights else spec) for spec in specs]
    empty = [number for number, source in enumerate(opened) if not len(source)]
    if empty:
        raise ValueError(f"sources: number {empty[0]} (from 0) holds no record")
    total = None if epochs is None else round(epochs * sum(map(len, opened)))
    if total is not None and total < 1:
        raise ValueError(f"epochs {epochs} of {sum(map(len, opened))} record(s) is not one whole record")
    rows = batch_size // process_count
    fixed = process_count > 1 if fixed_shape is None else fixed_shape
    make = _MakeBatch(
        sources=opened,
        to_sample=to_sample,
        plan=plan,
        first_row=process_index * rows,
        rows=rows,
        skip_budget=skip_budget,
        pad_id=pad_id,
        bucket=plan.largest_bucket() if fixed else None,
    )
    order = _order(opened, weights, seed, shuffle, total)
    batches = order.batch(batch_size, drop_remainder=False, batch_fn=list).map(make)
    steps = None if total is None else -(-total // batch_size)
    return Pipeline(batches, steps, sum(map(len, opened)) / batch_size, workers, buffer, skip_budget)


class Pipeline:
    """Batches by step. Made by `make_pipeline`.

    Attributes:
        steps: how many batches there are, or None without end.
        steps_per_epoch: records of all sources over the batch size.
        counters: see `PipelineCounters`; they go on over several iterators.
    """

    def __init__(
        self, batches: Any, steps: int | None, steps_per_epoch: float, workers: int, buffer: int, budget: int
    ):
        self._batches, self._workers, self._buffer, self._budget = batches, workers, buffer, budget
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.counters = PipelineCounters()

    def __iter__(self) -> "BatchIterator":
        return self.iterator()

    def iterator(self, start_step: int = 0) -> "BatchIterator":
        """Iterates from global step `start_step` (from 0), as if the steps before had been taken."""
        import grain

        if start_step < 0:
            raise ValueError(f"start_step {start_step} is negative")
        if self.steps is not None and start_step >= self.steps:
            return BatchIterator(self, None, start_step)
        batches = self._batches[start_step:] if start_step else self._batches
        if not self._workers:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, self._buffer))
            return BatchIterator(self, iter(batches.to_iter_dataset(options)), start_step)
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only an absl app would parse
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=max(1, self._buffer)
        )
        return BatchIterator(self, iter(batches.to_iter_dataset(options).mp_prefetch(workers)), start_step)

    def batch(self, step: int) -> Batch:
        """The batch of one step, made here and now; for looking at data."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise IndexError(f"step {step} is not one of {self.steps}")
        return self._take(self._batches[step], 0.0)

    def _take(self, made: tuple[Batch | None, "_Report"], waited: float) -> Batch:
        batch, report = made
        counters = self.counters
        counters.bad.update((name, reason) for name, reason, _ in report.bad)
        counters.skipped += len(report.bad)
        counters.too_long += report.too_long
        counters.wait_seconds += waited
        counters.last_wait_seconds = waited
        if len(counters.bad) > self._budget:
            error = BadRecordsError(counters.bad, self._budget)
            if report.bad:
                error.add_note(f"The last one was raised here:\n{report.bad[-1][2]}")
            raise error
        if batch is None:
            raise ValueError(report.failure)
        counters.batches += 1
        counters.samples += report.samples
        counters.tokens += report.tokens
        counters.slots += sum(text.tokens.size for text in batch.texts.values())
        counters.buckets[report.bucket] += 1
        return batch


class BatchIterator(Iterator[Batch]):
    """Batches in order; `step` is that of the next one. Close it (or use `with`) to end its workers early."""

    def __init__(self, pipeline: Pipeline, made: Any, step: int):
        self._pipeline, self._made, self.step = pipeline, made, step

    def __next__(self) -> Batch:
        if self._made is None:
            raise StopIteration
        start = time.perf_counter()
        try:
            made = next(self._made)
        except StopIteration:
            self.close()
            raise
        try:
            batch = self._pipeline._take(made, time.perf_counter() - start)
        except Exception:
            self.close()
            raise
        self.step += 1
        return batch

    def close(self) -> None:
        """Ends the worker processes or the thread; `next` then raises StopIteration."""
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _order(
    sources: Sequence[Source], weights: Sequence[float] | None, seed: int, shuffle: bool, total: int | None
):
    """A grain MapDataset of (source, record), reshuffled each epoch, of `total` references or without end."""
    import grain

    sizes = [len(source) for source in sources]
    groups = [range(len(sizes))] if weights is None else [range(i, i + 1) for i in range(len(sizes))]
    seeds = np.random.SeedSequence(seed).generate_state(len(groups))
    parts = []
    for group, group_seed in zip(groups, seeds, strict=True):
        starts = np.cumsum([0] + [sizes[source] for source in group])
        size = int(starts[-1])
        if shuffle and size < _SMALL:
            part = grain.MapDataset.range(sys.maxsize).map(
                functools.partial(_shuffled, size, int(group_seed))
            )
        else:
            part = grain.MapDataset.range(size)
            part = (part.shuffle(seed=int(group_seed)) if shuffle else part).repeat()
        parts.append(part.map(functools.partial(_locate, starts, group[0])))
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)
    return mixed[: sys.maxsize if total is None else total]


# grain's shuffle walks through 2^16 places to find one of few: 4 ms for each record of 23, 8 us of 10,000.
_SMALL = 8192


def _shuffled(size: int, seed: int, place: int) -> int:
    epoch, place = divmod(int(place), size)
    return int(_permutation(size, seed, epoch)[place])


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    # RandomState's numbers are the same in every version of numpy, those of default_rng need not be.
    return np.random.RandomState([seed, epoch]).permutation(size)


def _locate(starts: np.ndarray, first: int, record: int) -> tuple[int, int]:
    source = int(np.searchsorted(starts, record, side="right")) - 1
    return first + source, int(record - starts[source])


@dataclasses.dataclass(frozen=True)
class _Report:
    """What the maker of a batch tells the counters: bad records are (name, reason, traceback)."""

    bad: tuple[tuple[str, str, str], ...] = ()
    too_long: int = 0
    samples: int = 0
    tokens: int = 0
    bucket: Bucket | None = None
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class _MakeBatch:
    """From the references of one global batch to this process's rows of it; a pure function of them."""

    sources: Sequence[Source]
    to_sample: ToSample
    plan: TokenPlan
    first_row: int
    rows: int
    skip_budget: int
    pad_id: int
    bucket: Bucket | None

    def __call__(self, references: Sequence[tuple[int, int]]) -> tuple[Batch | None, _Report]:
        bad: list[tuple[str, str, str]] = []
        samples, too_long = [], 0
        for source, record in references[self.first_row : self.first_row + self.rows]:
            sample, skipped = self._first_good(self.sources[source], record, bad)
            too_long += skipped
            if sample is None:
                failure = f"source {source} has no usable record from {record} on; {skipped} are too long"
                return None, _Report(bad=tuple(bad), too_long=too_long, failure=failure)
            samples.append(sample)
        bucket = self.bucket or self.plan.bucket(samples)
        batch = collate(samples, self.plan, self.pad_id, self.rows, bucket)
        tokens = sum(len(sample) + sample.num_written for sample in samples)
        return batch, _Report(tuple(bad), too_long, len(samples), tokens, bucket)

    def _first_good(
        self, source: Source, record: int, bad: list[tuple[str, str, str]]
    ) -> tuple[Sample | None, int]:
        """The sample of this record or else of the next good one; appends to `bad`, counts the too long."""
        too_long = failed = 0
        for offset in range(len(source)):
            index = (record + offset) % len(source)
            name = source.name(index)
            try:
                sample = self.to_sample(source[index], name)
                self.plan.check(sample)
                return sample, too_long
            except MemoryError:
                raise
            except Exception as error:  # whatever is wrong with the record: counted, named, and limited
                if isinstance(error, SampleTooLong) and self.plan.too_long == "skip":
                    too_long += 1
                    continue
                bad.append((name, f"{type(error).__name__}: {error}", traceback.format_exc()))
                failed += 1
                if failed > self.skip_budget:
                    return None, too_long
        return None, too_long
