"""What the tests of families share: the tolerance, and a model run on arrays as transformers takes them."""

import jax
import numpy as np
import pytest
import torch

from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.interop.huggingface import model_of


class Parity:
    """Comparison with a reference and forward passes of our models."""

    @staticmethod
    def close(mine, reference):
        """max abs diff <= 1e-4 * max(1, RMS of the reference), and same shapes."""
        mine = np.asarray(mine, np.float32)
        reference = (
            reference.detach().float().numpy() if torch.is_tensor(reference) else np.asarray(reference)
        )
        assert mine.shape == reference.shape
        assert np.isfinite(mine).all()
        bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(reference)))))
        worst = float(np.max(np.abs(mine - reference), initial=0.0))
        assert worst <= bound, f"max abs diff {worst:.3g} > {bound:.3g}"

    @staticmethod
    def lm(config, params, ids, mask=None, pixels=None):
        """Our logits [B, T, V] for ids [B, T], attention mask [B, T], pixels [images, 3, H, W].

        Images belong to the rows in order, as many to each as its placeholders need.
        """
        ids = np.asarray(ids, np.int32)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int32)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
        media, index = {}, None
        if pixels is not None:
            (port,) = config.encoders
            here = ids == config.media_tokens[port]
            index = np.where(here, np.cumsum(here, axis=1) - 1, -1).astype(np.int32)
            counts = here.sum(axis=1) // config.num_tokens(port)
            assert counts.sum() == len(pixels)
            images = np.asarray(pixels, np.float32).transpose(0, 2, 3, 1)
            values = np.zeros((len(ids), max(counts.max(), 1), *images.shape[1:]), np.float32)
            segments = np.zeros(values.shape[:2], np.int32)
            start = 0
            for row, count in enumerate(counts):
                values[row, :count] = images[start : start + count]
                segments[row, :count] = np.arange(1, count + 1)
                start += count
            media = {port: Media(values, segments)}
        text = TextStream(tokens=ids, positions=positions, segment_ids=mask, media_index=index)
        run = jax.jit(lambda params, batch: model_of(config)(params, batch).logits)
        return np.asarray(run(params, Batch({"text": text}, media)))


@pytest.fixture(scope="session")
def parity():
    return Parity
