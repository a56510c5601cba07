"""The token plan: how many tokens each media item becomes, where they stand, and which bucket a batch fills.

This is the one place that decides it. The pipeline, decoding and evaluation all read the plan, and the
model hands it nothing but a counting function, so the number of placeholder tokens and the number of media
features cannot disagree. Batches take a static shape out of a small set (`Bucket`), so that a jitted step
compiles once for each shape and never again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmjax.data.answers import cut_answer, split_answer
from mmjax.data.bidirectional import KINDS, item_group, prefix_group
from mmjax.data.chat_template import MediaSpan, Span
from mmjax.data.inside import SEES, seen_items
from mmjax.data.items import Layout, MediaSize, TokenPlanError, run_of
from mmjax.data.positions import axis_positions
from mmjax.data.samples import Bucket, Sample, SampleTooLong
from mmjax.data.targets import TargetArray, count_of


@dataclasses.dataclass(frozen=True)
class TokenPlan:
    """How samples become tokens and batches become static shapes.

    Attributes:
        count: (port, grid or None, original_size or None) -> tokens of that item; the model's `num_tokens`.
        media_tokens: port -> the token id that stands for its media, all ports in the config's order.
        lengths: the allowed sequence lengths T, ascending.
        items: port -> the allowed numbers of items per row, ascending. Where 0 is among them, a batch
            without such media has no entry for the port.
        targets: the allowed capacities of `loss_positions`; () means 16, 32, 64, ... but never beyond T.
        too_long: what happens to a sample longer than the longest bucket. "error": SampleTooLong. "skip": the
            same, which the pipeline counts and replaces at no cost to its budget for bad records.
            "truncate": the end is cut off, never inside an item; that of an encoder-decoder's answer by itself.
        grouped: True gives every batch an `attend_group`; False only those that need it.
        item_shapes: port -> shape of one item's array. Needed only where a batch must hold padding items
            although none of its samples has a real one.
        layouts: port -> how its items lie in a batch; a port without one has items of one shape that become
            as many tokens each.
        entries: port -> the allowed numbers of entries a row, ascending; powers of two if not given.
        axes: whether positions have axes for time, height and width.
        bidirectional: which tokens see each other both ways: "none", the "prefix" before a sample's first target, or
            those of each "item"; see `MultimodalLMConfig`.
        inside: port that is read inside the backbone -> which of its items a token sees, see `seen_items`. Such an
            item stands in the text as its port's one media token, or as nothing where the port has none.
        start_token: what an encoder-decoder's decoder reads first; None for models that write behind what they read.
        instructed: port whose projector reads an instruction beside the media -> how many tokens of it at most.
        drawn: port of a generator -> the arrays that a row's loss compares with, by name; `items` may say how many
            signals a row has.
    """

    count: Callable[[str, Any, Any], int]
    media_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    items: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    targets: tuple[int, ...] = ()
    too_long: Literal["error", "skip", "truncate"] = "error"
    grouped: bool = False
    item_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    entries: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    axes: bool = False
    bidirectional: Literal["none", "prefix", "item"] = "none"
    inside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start_token: int | None = None
    instructed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drawn: Mapping[str, Mapping[str, TargetArray]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        ladders = {"lengths": self.lengths, "targets": self.targets or (1,)}
        ladders |= {f"items[{port!r}]": ladder for port, ladder in self.items.items()}
        ladders |= {f"entries[{port!r}]": ladder for port, ladder in self.entries.items()}
        for name, ladder in ladders.items():
            if not ladder or list(ladder) != sorted(set(ladder)) or ladder[0] < 0:
                raise TokenPlanError(f"{name} is {ladder}; wanted ascending whole numbers")
        for port in (*self.items, *self.item_shapes, *self.layouts, *self.entries):
            if port not in self.ports and port not in self.drawn:
                raise TokenPlanError(f"port {port!r} has no media token; ports: {list(self.ports)}")
        for port, sees in self.inside.items():
            if sees not in SEES:
                raise TokenPlanError(f"inside[{port!r}] is {sees!r}; wanted one of {SEES}")
        if self.too_long not in ("error", "skip", "truncate"):
            raise TokenPlanError(f'too_long is {self.too_long!r}; wanted "error", "skip" or "truncate"')
        if self.bidirectional not in KINDS:
            raise TokenPlanError(f"bidirectional is {self.bidirectional!r}; wanted one of {KINDS}")

    @property
    def ports(self) -> tuple[str, ...]:
        """All ports, those whose projected tokens are concatenated in that order."""
        return (*self.media_tokens, *(port for port in self.inside if port not in self.media_tokens))

    @property
    def standing(self) -> tuple[str, ...]:
        """The ports whose items stand in the text as their tokens."""
        return tuple(port for port in self.ports if port not in self.inside)

    def plan_sample(
        self,
        spans: Sequence[Span],
        media_sizes: Mapping[str, Sequence[MediaSize]] | None = None,
        name: str = "",
        branch: bool = False,
    ) -> Sample:
        """Lays out spans of text and media as one sequence.

        Args:
            spans: TextSpan and MediaSpan in order; `loss` may be any weight of 0 or more, for each id.
            media_sizes: port -> the size of each item.
            name: what messages call the sample.
            branch: the spans are one branch of several that share the media, and need not show all items.

        Raises:
            TokenPlanError: spans and items do not match one to one, in order.
            SampleTooLong: see `too_long`; also when truncation would leave no target.
        """
        given = media_sizes or {}
        self._check_items(spans, given, name, branch)
        sizes = {port: tuple(MediaSize(*size) for size in given.get(port, ())) for port in self.ports}
        counts = {port: tuple(self.tokens_of(port, size, name) for size in sizes[port]) for port in self.ports}
        self._check_parts(spans, counts, name)
        starts, row = {}, 0
        for port in self.standing:
            for item, count in enumerate(counts[port]):
                starts[port, item] = row
                row += count

        tokens, weights, rows, items, runs, length = [], [], [], [], [], 0
        inside: dict[str, list[int | None]] = {port: [None] * len(counts[port]) for port in self.inside}
        for span in spans:
            if isinstance(span, MediaSpan) and span.port in self.inside:
                mark = self.media_tokens.get(span.port)
                tokens.append(np.asarray([] if mark is None else [mark], np.int32))
                weights.append(np.zeros(len(tokens[-1]), np.float32))
                rows.append(np.full(len(tokens[-1]), -1, np.int32))
                items.append((length, span.port, length + len(tokens[-1])))
                inside[span.port][span.item] = length
            elif isinstance(span, MediaSpan):
                whole, start = counts[span.port][span.item], starts[span.port, span.item] + span.first
                count = whole - span.first if span.count is None else span.count
                tokens.append(np.full(count, self.media_tokens[span.port], np.int32))
                weights.append(np.zeros(count, np.float32))
                rows.append(np.arange(start, start + count, dtype=np.int32))
                # The rest of an item that stands in several runs goes on with it.
                begin = length if span.first == 0 else items.pop()[0]
                items.append((begin, span.port, length + count))
                layout = self.layouts.get(span.port) if count == whole else None
                runs.append(run_of(length, count, sizes[span.port][span.item], layout))
            else:
                tokens.append(np.asarray(span.ids, np.int32))
                weights.append(np.broadcast_to(np.asarray(span.loss, np.float32), tokens[-1].shape))
                rows.append(np.full(len(span.ids), -1, np.int32))
            length += len(tokens[-1])
        empty = np.zeros(0, np.int32)
        sample = Sample(
            tokens=np.concatenate([empty, *tokens]),
            positions=axis_positions(np.ones(length, bool), runs) if self.axes else np.arange(length, dtype=np.int32),
            loss_weights=np.concatenate([empty.astype(np.float32), *weights]),
            media_index=np.concatenate([empty, *rows]),
            item_tokens=counts,
            media_sizes=sizes,
            name=name,
        )
        if self.start_token is None:
            sample.loss_weights[:1] = 0
        if self.inside:
            seen = [seen_items(length, inside[port], sees) for port, sees in self.inside.items()]
            sample = dataclasses.replace(sample, media_attention=np.concatenate(seen, axis=1))
        if self.bidirectional != "none":
            group = item_group(length, runs)
            if self.bidirectional == "prefix":
                group = prefix_group(np.ones(length, bool), sample.loss_weights != 0)
            sample = dataclasses.replace(sample, bidirectional_group=group)
        if self.start_token is not None:
            sample = split_answer(sample)
        if sample.answer is not None and self.too_long == "truncate":
            sample = cut_answer(sample, self.lengths[-1] - 1)
        if len(sample) > self.lengths[-1] and self.too_long == "truncate":
            if branch:
                raise SampleTooLong(self._too_long(sample) + "; a branch is not truncated")
            sample = self._truncate(sample, items)
        self.check(sample)
        return sample

    def check(self, sample: Sample) -> None:
        """Raises SampleTooLong if the sample fits no bucket."""
        if len(sample) > self.lengths[-1]:
            raise SampleTooLong(self._too_long(sample))
        for port, counts in sample.item_tokens.items():
            most = self._items(port)[-1]
            if len(counts) > most:
                raise SampleTooLong(
                    f"{sample.name}: {len(counts)} {port} items, more than the largest bucket of {most}"
                )
        for port, arrays in sample.targets.items():
            count, most = count_of(self.drawn[port], arrays), self._items(port)[-1]
            if count > most:
                raise SampleTooLong(
                    f"{sample.name}: {count} {port} items to draw, more than the largest bucket of {most}"
                )
        for port in self.spread:
            count, most = self.count_entries(sample, port), self.entries.get(port, (1 << 62,))[-1]
            if count > most:
                raise SampleTooLong(
                    f"{sample.name}: {count} entries of {port} items, more than the largest bucket of {most}"
                )
        if sample.answer is not None and len(sample.answer) >= self.lengths[-1]:
            raise SampleTooLong(
                f"{sample.name}: an answer of {len(sample.answer)} tokens and the start token do not fit the longest "
                f"bucket of {self.lengths[-1]}"
            )
        most = self._targets(self.lengths[-1])[-1]
        if sample.num_targets > most:
            raise SampleTooLong(
                f"{sample.name}: {sample.num_targets} target tokens, more than the largest bucket of {most}"
            )

    def share_prefix(self, samples: Sequence[Sample]) -> Sample:
        """Merges K branches that share their media and begin alike, for instance K questions on one image.

        The common prefix stands once, in attend_group 0; what follows of branch k is in group k = 1..K, with
        positions that continue from the prefix. The prefix ends early enough that no branch begins with a
        target: in the merged row only the first branch stands right behind the prefix, and a target is
        predicted from the token before it. Inside the prefix the branches' weights are added up, so the
        weighted sum of losses is that of the K separate rows.

        Raises:
            TokenPlanError: the branches' media differ, or some item is shown by no branch; or what stands before
                the first target sees all of itself, so that a common prefix would see into every branch.
            SampleTooLong: the merged sample fits no bucket; it is never truncated.
        """
        first = samples[0]
        if self.start_token is not None and len(samples) > 1:
            raise TokenPlanError(
                f"{first.name}: its {len(samples)} branches cannot share a prefix: this model's decoder writes one "
                "answer a row; give each branch as a conversation of its own"
            )
        for other in samples[1:]:
            if other.item_tokens != first.item_tokens or other.media_sizes != first.media_sizes:
                raise TokenPlanError(f"{first.name}: its branches do not share their media")
        total = sum(sum(first.item_tokens[port]) for port in self.standing)
        shown = np.unique(np.concatenate([sample.media_index for sample in samples]))
        if np.count_nonzero(shown >= 0) != total:
            raise TokenPlanError(
                f"{first.name}: the media have {total} tokens but the branches show "
                f"{np.count_nonzero(shown >= 0)} of them; placeholders and items do not match"
            )
        if self.inside:
            seen = np.concatenate([sample.media_attention for sample in samples]).any(axis=0)
            if not seen.all():
                raise TokenPlanError(
                    f"{first.name}: {len(seen)} media item(s) are read inside the backbone but tokens of the branches "
                    f"see {np.count_nonzero(seen)} of them; placeholders and items do not match"
                )
        if len(samples) == 1:
            return first
        if self.bidirectional == "prefix":
            raise TokenPlanError(
                f"{first.name}: its {len(samples)} branches cannot share a prefix: this model's prefix sees what "
                'follows it up to the first target (bidirectional "prefix"), so it is another one in each branch'
            )
        prefix = min(map(len, samples))
        for other in samples[1:]:
            same = (first.tokens[:prefix] == other.tokens[:prefix]) & (
                first.media_index[:prefix] == other.media_index[:prefix]
            )
            if self.inside:
                same &= (first.media_attention[:prefix] == other.media_attention[:prefix]).all(axis=1)
            prefix = prefix if same.all() else int(np.argmin(same))
        while prefix and any(len(s) > prefix and s.loss_weights[prefix] > 0 for s in samples):
            prefix -= 1

        def join(field: str) -> np.ndarray:
            head = getattr(first, field)[:prefix]
            return np.concatenate([head, *(getattr(sample, field)[prefix:] for sample in samples)])

        weights = join("loss_weights")
        weights[:prefix] = sum(sample.loss_weights[:prefix] for sample in samples)
        groups = [np.zeros(prefix, np.int32)]
        groups += [np.full(len(sample) - prefix, k, np.int32) for k, sample in enumerate(samples, 1)]
        merged = dataclasses.replace(
            first,
            tokens=join("tokens"),
            positions=join("positions"),
            loss_weights=weights,
            media_index=join("media_index"),
            attend_group=np.concatenate(groups),
            bidirectional_group=None if first.bidirectional_group is None else join("bidirectional_group"),
            media_attention=None if first.media_attention is None else join("media_attention"),
        )
        self.check(merged)
        return merged

    def bucket(self, samples: Sequence[Sample]) -> Bucket:
        """The smallest static shape that holds all the samples.

        Raises:
            SampleTooLong: one of them fits no bucket.
        """
        for sample in samples:
            self.check(sample)
        length = _smallest(self.lengths, max(map(len, samples), default=0))
        items = tuple(
            (
                port,
                _smallest(
                    self._items(port), max((len(s.item_tokens.get(port, ())) for s in samples), default=0)
                ),
            )
            for port in self.ports
        )
        grouped = self.grouped or any(sample.attend_group is not None for sample in samples)
        entries = tuple(
            (port, self._entries(port, max((self.count_entries(s, port) for s in samples), default=0)))
            for port in self.spread
        )
        written = max((sample.num_written for sample in samples), default=0)
        answer = _smallest(_doubling(self.lengths[-1]), written) if written else 0
        ladder = self._targets(length if self.start_token is None else max(answer, 1))
        targets = _smallest(ladder, max((sample.num_targets for sample in samples), default=0))
        counts = {
            port: [count_of(specs, sample.targets[port]) for sample in samples if port in sample.targets]
            for port, specs in self.drawn.items()
        }
        drawn = tuple((port, _smallest(self._items(port), max(found, default=0))) for port, found in counts.items())
        return Bucket(length, items, targets, grouped, entries, answer, drawn)

    def largest_bucket(self) -> Bucket:
        """The one shape that holds every sample, for batches whose shape must not depend on their samples."""
        items = tuple((port, self._items(port)[-1]) for port in self.ports)
        entries = tuple((port, self.entries[port][-1]) for port in self.spread if port in self.entries)
        if len(entries) < len(self.spread):
            raise TokenPlanError(
                f"a batch of one shape needs entries for {', '.join(p for p in self.spread if p not in self.entries)}"
            )
        answer = 0 if self.start_token is None else _doubling(self.lengths[-1])[-1]
        drawn = tuple((port, self._items(port)[-1]) for port in self.drawn)
        targets = self._targets(self.lengths[-1])[-1]
        return Bucket(self.lengths[-1], items, targets, self.grouped, entries, answer, drawn)

    @property
    def spread(self) -> tuple[str, ...]:
        """The ports whose items may be several entries, or patches."""
        return tuple(p for p in self.ports if p in self.layouts and (self.layouts[p].packed or self.layouts[p].arrange))

    def count_entries(self, sample: Sample, port: str) -> int:
        """Entries of a sample's items of a port."""
        sizes = sample.media_sizes.get(port, ())
        return sum(self.layouts[port].entries(size.grid, size.original_size) for size in sizes)

    def _entries(self, port: str, count: int) -> int:
        """The smallest allowed number of entries that holds `count`."""
        if port in self.entries:
            return _smallest(self.entries[port], count)
        least = 64 if self.layouts[port].packed else 1
        return 0 if not count else max(least, 1 << (count - 1).bit_length())

    def _items(self, port: str) -> tuple[int, ...]:
        return self.items.get(port, (0, 1, 2, 4, 8))

    def _targets(self, length: int) -> tuple[int, ...]:
        """The capacities of loss_positions up to T; the last one holds T targets unless a ladder is given."""
        if self.targets:
            return tuple(min(size, length) for size in self.targets)
        return _doubling(length)

    def _too_long(self, sample: Sample) -> str:
        return f"{sample.name}: {len(sample)} tokens, more than the longest bucket of {self.lengths[-1]}"

    def tokens_of(self, port: str, size: MediaSize, name: str = "") -> int:
        """How many tokens of the text an item is; those of what is read inside the backbone are its mark or none.

        Raises:
            TokenPlanError: naming the sample: none at all.
        """
        if port in self.inside:
            return int(port in self.media_tokens)
        count = self.count(port, size.grid, size.original_size)
        if count < 1:
            raise TokenPlanError(
                f"{name}: an item of port {port!r} with {size} was counted as {count} tokens"
            )
        return int(count)

    def _check_items(
        self, spans: Sequence[Span], sizes: Mapping[str, Sequence], name: str, branch: bool
    ) -> None:
        shown: dict[str, list[int]] = {port: [] for port in self.ports}
        for span in spans:
            if isinstance(span, MediaSpan):
                if span.port not in shown:
                    raise TokenPlanError(f"{name}: no port {span.port!r}; the model has {list(self.ports)}")
                # A run that goes on with an item is none of its own.
                if not (span.first and shown[span.port] and shown[span.port][-1] == span.item):
                    shown[span.port].append(span.item)
        for port in sizes:
            if port not in shown and len(sizes[port]):
                raise TokenPlanError(f"{name}: no port {port!r}; the model has {list(self.ports)}")
        for port, numbers in shown.items():
            given = len(sizes.get(port, ()))
            if (len(numbers) != given and not branch) or any(number >= given for number in numbers):
                raise TokenPlanError(
                    f"{name}: {len(numbers)} {port} placeholder(s) but {given} {port} item(s)"
                )
            if numbers != sorted(set(numbers)):
                raise TokenPlanError(
                    f"{name}: {port} items are shown in the order {numbers}, not in their own"
                )

    def _check_parts(self, spans: Sequence[Span], counts: Mapping[str, Sequence[int]], name: str) -> None:
        """The runs of an item are all its tokens in order, none of another port's between them."""
        at, open_item, left = 0, None, 0
        for span in (span for span in spans if isinstance(span, MediaSpan) and span.port in self.standing):
            own = counts[span.port][span.item]
            at = at if open_item == (span.port, span.item) else 0
            count = own - span.first if span.count is None else span.count
            if (left and at == 0) or span.first != at or not 0 < count <= own - at:
                raise TokenPlanError(
                    f"{name}: {span.port} item {span.item} of {own} tokens: a run of {count} from token {span.first} "
                    f"on, where the {at} before it stand already"
                )
            open_item, at = (span.port, span.item), at + count
            left = own - at
        if left:
            raise TokenPlanError(f"{name}: {left} of the tokens of {open_item[0]} item {open_item[1]} stand nowhere")

    def _truncate(self, sample: Sample, items: list[tuple[int, str, int]]) -> Sample:
        """Cuts the end off, but before an item that the cut would fall into; `items` are (start, port, end)."""
        cut = self.lengths[-1]
        kept = dict.fromkeys(self.ports, 0)
        for start, port, end in items:
            if end > cut:
                cut = min(cut, start)
                break
            kept[port] += 1
        lost = sample.answer is None and sample.num_targets and not np.count_nonzero(sample.loss_weights[:cut])
        if not cut or lost:
            raise SampleTooLong(
                self._too_long(sample) + "; truncated, it would have no target or nothing left"
            )
        # Rows of dropped items leave holes where another port's rows follow them: number the kept rows anew.
        index, row, shift = sample.media_index[:cut], 0, np.zeros(cut, np.int32)
        for port in self.standing:
            counts = sample.item_tokens[port]
            inside = (index >= row) & (index < row + sum(counts))
            shift[inside] = row - sum(sum(sample.item_tokens[p][: kept[p]]) for p in self._before(port))
            row += sum(counts)
        return dataclasses.replace(
            sample,
            tokens=sample.tokens[:cut],
            positions=sample.positions[:cut],
            loss_weights=sample.loss_weights[:cut],
            media_index=np.where(index >= 0, index - shift, -1).astype(np.int32),
            bidirectional_group=None if sample.bidirectional_group is None else sample.bidirectional_group[:cut],
            media_attention=self._kept_columns(sample, kept, cut),
            item_tokens={port: sample.item_tokens[port][: kept[port]] for port in self.ports},
            media_sizes={port: sample.media_sizes[port][: kept[port]] for port in self.ports},
        )

    def _kept_columns(self, sample: Sample, kept: Mapping[str, int], cut: int) -> np.ndarray | None:
        """`media_attention` of the first `cut` tokens for the items that are left."""
        if sample.media_attention is None:
            return None
        columns = [np.arange(len(sample.item_tokens[port])) < kept[port] for port in self.inside]
        return sample.media_attention[:cut, np.concatenate(columns)]

    def _before(self, port: str) -> tuple[str, ...]:
        return self.standing[: self.standing.index(port)]


def _doubling(most: int) -> tuple[int, ...]:
    """16, 32, 64, ... up to `most`, which is the last."""
    ladder = [16]
    while ladder[-1] < most:
        ladder.append(2 * ladder[-1])
    return tuple(min(size, most) for size in ladder)


def _smallest(ladder: Sequence[int], size: int) -> int:
    return next(step for step in ladder if step >= size)
