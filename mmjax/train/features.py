"""Features of a frozen encoder, computed once for data that are seen many times."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mmjax.data.contracts import Media


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
