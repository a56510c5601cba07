"""Sources of several ports that become items of one port of the model: videos whose frames are images to it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.chat_template import MediaSpan, Span
from mmjax.data.conversation import Conversation, MediaPart
from mmjax.data.wording import Source


class Places(NamedTuple):
    """Where sources of several ports stand among those of the one whose items they become.

    Attributes:
        of: (port, number) -> (the port, the number there).
        recipes: that port -> whose recipe each of its sources has.
    """

    of: Mapping[tuple[str, int], tuple[str, int]]
    recipes: Mapping[str, Sequence[str]]


def gathered(
    conversation: Conversation, opened: Mapping[str, Sequence[tuple[Any, Source]]], merged: Mapping[str, str]
) -> tuple[dict[str, Sequence[tuple[Any, Source]]], Places]:
    """Sources of the ports that are `merged` among those of the port that they become items of, in their order."""
    out, places, recipes = {port: list(found) for port, found in opened.items()}, {}, {}
    for own in {merged[port] for port in merged if opened.get(port)}:
        ports = [own, *(port for port, other in merged.items() if other == own)]
        taken, order = dict.fromkeys(ports, 0), []
        for message in (*conversation.messages, *(m for branch in conversation.branches for m in branch)):
            for part in message.parts:
                if isinstance(part, MediaPart) and part.port in ports:
                    places[part.port, taken[part.port]] = own, len(order)
                    order.append((part.port, taken[part.port]))
                    taken[part.port] += 1
        out |= {port: [] for port in ports}
        out[own], recipes[own] = [opened[port][number] for port, number in order], [port for port, _ in order]
    return {port: found for port, found in out.items() if port not in merged}, Places(places, recipes)


def counted(
    spans: Sequence[Span], opened: Mapping[str, Sequence[tuple[Any, Source]]], places: Places
) -> list[Span]:
    """The spans with items counted as the model has them: a source may be several."""
    moved = [places.of.get((span.port, span.item)) if isinstance(span, MediaSpan) else None for span in spans]
    spans = [
        span if to is None else dataclasses.replace(span, port=to[0], item=to[1])
        for span, to in zip(spans, moved, strict=True)
    ]
    starts = {
        port: np.cumsum([0, *(len(source.sizes) for _, source in media)]).tolist() for port, media in opened.items()
    }
    return [
        dataclasses.replace(span, item=starts[span.port][span.item] + span.part, part=0)
        if isinstance(span, MediaSpan) and span.port in starts and span.item < len(opened[span.port])
        else span
        for span in spans
    ]
