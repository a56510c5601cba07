"""What generators are to make of a text's signals: which parts of a record those are, and their arrays in a batch.

A recipe of such a port has `specs`, port's arrays by name, and `targets(conversation, port, opened)`, those of one
conversation.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.chat_template import MediaSpan, Span, TextSpan
from mmjax.data.conversation import Conversation, MediaPart, Message

# The port of what a model makes, by that of what it is shown.
OUT = "_out"


@dataclasses.dataclass(frozen=True)
class TargetArray:
    """An array that a generator's loss compares with.

    Attributes:
        shape: of one.
        dtype: its.
        each: whether there is one for each signal of a row, not one for the row.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    each: bool = False


def count_of(specs: Mapping[str, TargetArray], arrays: Mapping[str, np.ndarray]) -> int:
    """Signals of a sample: as many as it has of the arrays that each of them has."""
    return len(arrays[next(name for name, spec in specs.items() if spec.each)])


def stacked(
    specs: Mapping[str, TargetArray], rows: int, count: int, found: Sequence[Mapping[str, np.ndarray] | None]
) -> dict[str, np.ndarray]:
    """The arrays of a batch, [B, R, ...] or [B, ...], zeros where there is nothing, as "weights" [B, R] says."""
    lead = {name: (rows, count) if spec.each else (rows,) for name, spec in specs.items()}
    out = {name: np.zeros((*lead[name], *spec.shape), spec.dtype) for name, spec in specs.items()}
    out["weights"] = np.zeros((rows, count), np.float32)
    for row, arrays in enumerate(found):
        if arrays is None:
            continue
        number = count_of(specs, arrays)
        for name, spec in specs.items():
            out[name][(row, slice(number)) if spec.each else row] = arrays[name]
        out["weights"][row, :number] = 1
    return out


def with_outputs(conversation: Conversation, signals: Mapping[str, Any]) -> Conversation:
    """The conversation with the media of assistants' messages as parts of the ports that the model makes them at."""
    ports = {port.removesuffix(OUT): port for port in signals if port.endswith(OUT)}

    def renamed(message: Message) -> Message:
        if message.role != "assistant":
            return message
        parts = (
            dataclasses.replace(part, port=ports[part.port])
            if isinstance(part, MediaPart) and part.port in ports
            else part
            for part in message.parts
        )
        return dataclasses.replace(message, parts=tuple(parts))

    if not ports:
        return conversation
    branches = tuple(tuple(map(renamed, branch)) for branch in conversation.branches)
    return dataclasses.replace(conversation, messages=tuple(map(renamed, conversation.messages)), branches=branches)


def trained_parts(conversation: Conversation, ports: Iterable[str]) -> dict[str, list[bool]]:
    """For each item of some ports, whether its message is one that is learned."""
    messages = [*conversation.messages, *(message for branch in conversation.branches for message in branch)]
    trained: dict[str, list[bool]] = {port: [] for port in ports}
    for message in messages:
        for part in message.parts:
            if isinstance(part, MediaPart) and part.port in trained:
                trained[part.port].append(message.trained)
    return trained


def as_signals(
    spans: Sequence[Span], conversation: Conversation, signals: Mapping[str, tuple[int, ...]], stop: int | None = None
) -> list[Span]:
    """The spans with all that is to be drawn as the tokens of its port's signal, targets where their message is one.

    So is the token that ends the text, `stop`, where it follows such a signal.
    """
    trained, learned, out = trained_parts(conversation, signals), False, []
    for span in spans:
        if isinstance(span, MediaSpan) and span.port in signals:
            ids, learned = tuple(signals[span.port]), trained[span.port][span.item]
            out.append(TextSpan(ids, (learned,) * len(ids)))
            continue
        out.append(ending(span, stop) if learned else span)
        learned = False
    return out


def ending(span: Span, stop: int | None) -> Span:
    """The span behind an image that is learned: where it begins with the token that ends the text, that is a target."""
    if isinstance(span, TextSpan) and span.ids[0] == stop:
        return TextSpan(span.ids, (True, *span.loss[1:]))
    return span
