"""A sample cut in two for encoder-decoders: what is read, and the answer that is written.

The query is everything before the last run of targets; earlier answers of a conversation are then read, not learned.
What stands behind the answer (the end of a template) is left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmjax.data.chat_template import Span, TextSpan
from mmjax.data.items import TokenPlanError
from mmjax.data.samples import Sample


def answer_span(weights: np.ndarray) -> tuple[int, int]:
    """Where the last run of weights that are not zero starts and ends; both the length if there is none."""
    targets = np.flatnonzero(weights)
    if not len(targets):
        return len(weights), len(weights)
    breaks = np.flatnonzero(np.diff(targets) > 1)
    return int(targets[breaks[-1] + 1] if len(breaks) else targets[0]), int(targets[-1]) + 1


def without_targets(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans of a prompt, whose answer is yet to come: nothing in it is a target."""
    return tuple(
        dataclasses.replace(span, loss=(False,) * len(span.ids)) if isinstance(span, TextSpan) else span
        for span in spans
    )


def split_answer(sample: Sample) -> Sample:
    """The sample with its last answer apart, in `answer` and `answer_weights`.

    Raises:
        TokenPlanError: media in or behind the answer, or nothing before it.
    """
    start, end = answer_span(sample.loss_weights)
    if (sample.media_index[start:] >= 0).any():
        raise TokenPlanError(f"{sample.name}: an encoder-decoder reads media before its answer, not in or behind it")
    if not start:
        raise TokenPlanError(f"{sample.name}: there is nothing before the answer for the encoder to read")

    def head(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[:start]

    return dataclasses.replace(
        sample,
        tokens=sample.tokens[:start],
        positions=sample.positions[:start],
        loss_weights=np.zeros(start, np.float32),
        media_index=sample.media_index[:start],
        bidirectional_group=head(sample.bidirectional_group),
        media_attention=head(sample.media_attention),
        answer=sample.tokens[start:end],
        answer_weights=sample.loss_weights[start:end],
    )


def cut_answer(sample: Sample, most: int) -> Sample:
    """The sample with at most the first `most` tokens of its answer."""
    return dataclasses.replace(
        sample, answer=sample.answer[:most], answer_weights=sample.answer_weights[:most]
    )


def join_answer(sample: Sample) -> Sample:
    """The sample with its answer behind what is read, as one sequence, to be looked at; others as they are."""
    if sample.answer is None:
        return sample
    return dataclasses.replace(
        sample,
        tokens=np.concatenate([sample.tokens, sample.answer]),
        positions=np.arange(len(sample) + len(sample.answer), dtype=np.int32),
        loss_weights=np.concatenate([sample.loss_weights, sample.answer_weights]),
        media_index=np.concatenate([sample.media_index, np.full(len(sample.answer), -1, np.int32)]),
        answer=None,
        answer_weights=None,
    )
