"""One row's worth of a batch before it is one: a planned sample, and the static shape that a batch fills."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data.items import MediaSize, TokenPlanError


class SampleTooLong(TokenPlanError):
    """A sample that fits no bucket; the message names the sample, its length and the largest bucket."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One row's worth of tokens, planned but not padded, with the media they refer to.

    Attributes:
        tokens, positions, media_index: int32 [T]; positions [T, 3] where they have axes. media_index is -1 for
            text, else the row in the sample's own projected tokens: ports one after the other in the plan's
            order, items in order.
        loss_weights: float32 [T], of token t as a target; loss_weights[0] is 0, since nothing predicts it.
        attend_group, bidirectional_group: int32 [T] or None; see `TextStream`.
        item_tokens: port -> the number of tokens of each of its items; every port of the plan, in order.
        media_sizes: port -> one MediaSize for each item.
        media: port -> one array for each item, float [H, W, 3] raw or [N, D] encoded.
        name: where the sample came from, for messages.
        media_attention: bool [T, I], which items of the plan's inside ports, port after port, each token sees; None
            where there are no such ports.
        answer, answer_weights: int32 and float32 [A], of an encoder-decoder what it writes, whose tokens are then
            not among `tokens`; None for other models.
        targets: port of a generator -> arrays that its loss compares with, some with one for each signal [R, ...], see
            `mmjax.data.targets`; a port without any is not there.
        instruction: int32 [Q], what a projector reads beside the media, in the tokens of its own tokenizer; None where
            none does.
    """

    tokens: np.ndarray
    positions: np.ndarray
    loss_weights: np.ndarray
    media_index: np.ndarray
    attend_group: np.ndarray | None = None
    bidirectional_group: np.ndarray | None = None
    item_tokens: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    media_sizes: Mapping[str, tuple[MediaSize, ...]] = dataclasses.field(default_factory=dict)
    media: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)
    name: str = ""
    media_attention: np.ndarray | None = None
    answer: np.ndarray | None = None
    answer_weights: np.ndarray | None = None
    targets: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    instruction: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """How many tokens are targets of the loss."""
        return int(np.count_nonzero(self.loss_weights if self.answer is None else self.answer_weights))

    @property
    def num_written(self) -> int:
        """Tokens of an encoder-decoder's stream "decoder": the answer and the start token before it; 0 without one."""
        return 1 + len(self.answer) if self.answer is not None and len(self.answer) else 0

    def followed_by(self, ids: Sequence[int]) -> "Sample":
        """The sample with tokens of text behind it that are no targets: what opens an answer of another kind."""
        count, steps = len(ids), np.arange(1, len(ids) + 1, dtype=np.int32)
        last = self.positions.max(axis=0)
        behind = {
            "tokens": np.asarray(ids, np.int32),
            "positions": last + (steps if last.ndim == 0 else steps[:, None]),
            "loss_weights": np.zeros(count, np.float32),
            "media_index": np.full(count, -1, np.int32),
            "attend_group": None if self.attend_group is None else np.repeat(self.attend_group[-1:], count),
            "bidirectional_group": np.zeros(count, np.int32),
            "media_attention": None if self.media_attention is None else self.media_attention[[-1] * count],
        }
        joined = {
            name: np.concatenate([leaf, behind[name].astype(leaf.dtype)])
            for name in behind
            if (leaf := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **joined)

    def with_media(self, media: Mapping[str, Sequence[np.ndarray]]) -> "Sample":
        """Attaches the arrays of all items; those of items that were truncated away are let go.

        Raises:
            TokenPlanError: fewer arrays than items, naming the sample and both counts.
        """
        kept = {}
        for port, counts in self.item_tokens.items():
            arrays = tuple(media.get(port, ()))
            if len(arrays) < len(counts):
                raise TokenPlanError(
                    f"{self.name}: {len(counts)} {port} item(s) planned but {len(arrays)} array(s) given"
                )
            kept[port] = arrays[: len(counts)]
        return dataclasses.replace(self, media=kept)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The static shape of a batch: T tokens a row, I items of each port, M targets; hashable.

    `grouped` says whether the batch has `attend_group`; `entries` how many tiles, frames or patches a row has of
    those ports whose items are more than one entry; `answer` the tokens of a row that an encoder-decoder writes, its
    start token among them, 0 where there are none; `drawn` the signals of a row of each port of a generator.
    """

    length: int
    items: tuple[tuple[str, int], ...] = ()
    targets: int = 0
    grouped: bool = False
    entries: tuple[tuple[str, int], ...] = ()
    answer: int = 0
    drawn: tuple[tuple[str, int], ...] = ()
