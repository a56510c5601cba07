"""What frozen parts make of data that are seen many times, computed once."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mmjax.data.contracts import Batch, Media
from mmjax.signals import signal_states


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


def cache_states(model: Any, params: Any, port: str, batches: Iterable[Batch]) -> np.ndarray:
    """Hidden states of the first signal of every row, for targets that hold "states", see `mmjax.train.signal_loss`.

    Args:
        model: a MultimodalLM with a generator.
        params: its params; those of the generator are not used.
        port: the generator's.
        batches: of texts with signals; rows that are padding through and through are left out.

    Returns:
        float32 [n, K, D] on the host, the rows of all batches one after the other.

    Raises:
        ValueError: a row without a signal; the message has its number.
    """

    def read(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        media = model.encode_media(params, batch.media)
        hidden = model.forward(params, batch.texts, media, batch.media_owner)
        states, real = signal_states(model, port, batch.text, hidden, 1)
        return states[:, 0].astype(np.float32), real[:, 0]

    used = {name: tree for name, tree in params.items() if name in ("backbone", "encoders", "projectors")}
    reader, parts = jax.jit(read), []
    for batch in batches:
        states, real = (np.asarray(part) for part in reader(used, batch.replace(targets=None)))
        rows = np.asarray(batch.text.segment_ids).any(axis=1)
        if (rows & ~real).any():
            missing = sum(map(len, parts)) + int(np.argmax(rows & ~real))
            raise ValueError(f"row {missing} has no signal of port {port!r}")
        parts.append(states[rows])
    if not parts:
        raise ValueError(f"no text with a signal of port {port!r}")
    return np.concatenate(parts)
