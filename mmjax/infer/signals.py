"""What a model wrote, read once more: prompt and answer as one stream, and where the answer's signals are."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.data.contracts import TextStream
from mmjax.infer.generate import Generation
from mmjax.model import MultimodalLM
from mmjax.signals import find_signals


def continued(text: TextStream, out: Generation) -> TextStream:
    """A prompt and what was generated behind it as one stream, [B, T + N]."""
    tokens, segments = np.asarray(text.tokens), np.asarray(text.segment_ids)
    new = out.tokens.shape[1]
    real = np.arange(new) < out.lengths[:, None]
    positions = np.asarray(text.positions)
    valid = segments > 0
    ends = np.where(valid if positions.ndim == 2 else valid[..., None], positions, -1).reshape(len(tokens), -1)
    after = (ends.max(axis=1)[:, None] + 1 + np.arange(new)) * real
    after = after if positions.ndim == 2 else np.repeat(after[..., None], positions.shape[2], axis=2)

    def joined(leaf: Any, behind: np.ndarray) -> Any:
        return None if leaf is None else np.concatenate([np.asarray(leaf), behind.astype(np.int32)], axis=1)

    def last(leaf: Any) -> np.ndarray:
        """The group that the prompt ends in goes on."""
        return np.zeros((len(tokens), 0)) if leaf is None else np.asarray(leaf).max(axis=1, keepdims=True) * real

    return TextStream(
        tokens=joined(tokens, out.tokens),
        positions=joined(positions, after),
        segment_ids=joined(segments, last(segments)),
        media_index=joined(text.media_index, np.full(real.shape, -1)),
        attend_group=joined(text.attend_group, last(text.attend_group)),
        bidirectional_group=joined(text.bidirectional_group, np.zeros(real.shape)),
    )


def answers_only(text: TextStream, start: int) -> TextStream:
    """The stream with what stands before `start` marked as no text, so that its signals are none."""
    index = jnp.full(text.tokens.shape, -1) if text.media_index is None else jnp.asarray(text.media_index)
    return text.replace(media_index=jnp.where(jnp.arange(index.shape[1]) < start, 0, index))


def count_signals(model: MultimodalLM, port: str, text: TextStream, start: int) -> np.ndarray:
    """Signals of a port in every row from token `start` on, int [B]."""
    _, real = find_signals(model.config.signal_tokens[port], answers_only(text, start), text.tokens.shape[1])
    return np.asarray(real).sum(axis=1)


def power_of_two(number: int) -> int:
    """The smallest that is not below `number`: few programs for many sizes."""
    return 1 << max(number - 1, 0).bit_length()
