"""Convolution along one axis against torch, of sequences and of videos."""

import jax
import numpy as np
import pytest
import torch

from mmjax.nn.sequence_conv import SequenceConv


@pytest.mark.parametrize(
    ("size", "dilation", "shape"), [(5, 3, (2, 9, 3)), (3, 1, (2, 1, 2, 3, 4)), (3, 2, (1, 7, 5, 2))]
)
def test_equal_to_torch(size, dilation, shape):
    rng = np.random.default_rng(size)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, shape[-1], 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    got = SequenceConv(6, size, dilation).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    # Every place between by itself, [B * places, in, T].
    flat = torch.tensor(x).reshape(*shape[:2], -1, shape[-1]).permute(0, 2, 3, 1).flatten(0, 1)
    weight = torch.tensor(kernel).permute(2, 1, 0)
    wanted = torch.nn.functional.conv1d(flat, weight, torch.tensor(bias), padding="same", dilation=dilation)
    wanted = wanted.unflatten(0, (shape[0], -1)).permute(0, 3, 1, 2).reshape(*shape[:-1], 6).numpy()
    assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, np.sqrt(np.mean(wanted**2)))


def test_axes_are_those_of_the_parameters():
    # A few channels are kept whole.
    for width, axis in ((64, "embed"), (4, None)):
        module = SequenceConv(width, 3)
        boxed = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 5, 2), np.float32))["params"]
        for name, axes in (("kernel", ("patch", "feature", axis)), ("bias", (axis,))):
            assert boxed[name].names == axes and boxed[name].value.ndim == len(axes)
