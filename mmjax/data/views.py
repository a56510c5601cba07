"""Second views: one item of a conversation that goes to several ports, such as an image at two resolutions."""

import dataclasses
from collections.abc import Mapping

from mmjax.data.conversation import Conversation, MediaPart, Message


def with_views(conversation: Conversation, views: Mapping[str, str]) -> Conversation:
    """The conversation with the items of every view right before those that they are a view of.

    Args:
        conversation: shows the items of the ports that are viewed, and none of a view.
        views: port -> port whose items it sees too.
    """
    if not views:
        return conversation

    def seen(message: Message) -> Message:
        parts = []
        for part in message.parts:
            if isinstance(part, MediaPart):
                parts += [MediaPart(port, part.source) for port, viewed in views.items() if viewed == part.port]
            parts.append(part)
        return dataclasses.replace(message, parts=tuple(parts))

    return dataclasses.replace(
        conversation,
        messages=tuple(map(seen, conversation.messages)),
        branches=tuple(tuple(map(seen, branch)) for branch in conversation.branches),
    )
