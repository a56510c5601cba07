"""What frozen parts make of data that are seen many times, computed once."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mmjax.data.contracts import Batch, Media
from mmjax.train.losses import target_states


def cache_features(
    model: Any,
    params: Any,
    port: str,
    images: Iterable[np.ndarray],
    batch_size: int = 32,
    dtype: str = "float32",
) -> np.ndarray:
    """Encodes every image once; batches made of the rows train with `Media(stage="encoded")`.

    Args:
        model: a MultimodalLM.
        params: its params; only those of the encoder are used.
        port: the encoder's name.
        images: [H, W, 3] float arrays, normalised as the encoder wants, all of one size.
        batch_size: images of one call; the last call is filled up, so one program is compiled.
        dtype: of the result.

    Returns:
        [n, N, D] on the host.

    Raises:
        ValueError: there is no image, or one has another shape than the first; the message has its number.
    """
    encoder = {"encoders": {port: params["encoders"][port]}}
    encode = jax.jit(lambda tree, values: model.encode(tree, port, Media(values)).values)
    images, parts, done, shape = iter(images), [], 0, None
    while chunk := list(itertools.islice(images, batch_size)):
        shape = np.shape(chunk[0]) if shape is None else shape
        for i, image in enumerate(chunk):
            if np.shape(image) != shape:
                raise ValueError(f"image {done + i} has shape {np.shape(image)}, the first has {shape}")
        values = np.stack(chunk + chunk[-1:] * (batch_size - len(chunk)))[:, None]
        parts.append(np.asarray(encode(encoder, values.astype(np.float32)))[: len(chunk)].astype(dtype))
        done += len(chunk)
    if not parts:
        raise ValueError(f"no image to encode for port {port!r}")
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What an LLM has in mind at the places where it is to say something, in the order of the rows and of their texts.

    Attributes:
        states: float32 [n, D], final-normed, each of the token before a target.
        others: float32 [n], the logarithm of the sum of exp(logit) of all tokens that are not new.
        targets: int32 [n], the tokens to be said.
        rows: int32 [n], which row of the data, padding left out, from 0.
    """

    states: np.ndarray
    others: np.ndarray
    targets: np.ndarray
    rows: np.ndarray


def cache_predictions(model: Any, params: Any, batches: Iterable[Batch]) -> Predictions:
    """Reads every text once and keeps the states that its targets are said from.

    The states at a signal whose tokens and end are targets are among them: those of its row but the first.

    Args:
        model: a MultimodalLM with one text stream, whose backbone may have new tokens.
        params: its params; those of generators are not used.
        batches: with `loss_positions`; rows that are padding through and through are left out.

    Raises:
        ValueError: no batch, or one without loss_positions.
    """
    old = model.config.backbone.vocab_size - model.config.backbone.new_tokens

    def read(params: Any, batch: Batch) -> tuple[jax.Array, ...]:
        media = model.encode_media(params, batch.media)
        hidden = model.forward(params, batch.texts, media, batch.media_owner)
        hidden, targets, weights = target_states(batch.text, hidden)
        others = jax.nn.logsumexp(model.logits(params, hidden)[..., :old], axis=-1)
        return hidden.astype(np.float32), others, targets, weights != 0

    used = {name: tree for name, tree in params.items() if name in ("backbone", "encoders", "projectors")}
    reader, parts, done = jax.jit(read), [], 0
    for batch in batches:
        if batch.text.loss_positions is None:
            raise ValueError("a batch without loss_positions: nothing is known of what is to be said")
        hidden, others, targets, real = (np.asarray(part) for part in reader(used, batch.replace(targets=None)))
        there = np.asarray(batch.text.segment_ids).any(axis=1)
        rows = np.broadcast_to((done + np.cumsum(there) - 1)[:, None], real.shape)
        parts.append([part[real] for part in (hidden, others, targets, rows.astype(np.int32))])
        done += there.sum()
    if not parts:
        raise ValueError("no text to read")
    return Predictions(*(np.concatenate(part) for part in zip(*parts, strict=True)))
