"""Convolution over all channels and normalisation of groups, against torch."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from mmjax.nn.full_conv import Conv
from mmjax.nn.group_norm import GroupNorm

X = np.random.default_rng(0).normal(2, 3, (2, 7, 6, 4)).astype(np.float32)


def params_of(module):
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), X)["params"])
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "size, stride, padding, bias", [(3, 1, 1, False), (2, 2, 0, True), (1, 1, 0, True), (3, 2, 2, True)]
)
def test_conv(size, stride, padding, bias):
    module = Conv(5, size, stride, padding, bias)
    params = params_of(module)
    kernel = torch.tensor(params["kernel"]).permute(3, 2, 0, 1)
    offset = torch.tensor(params["bias"]) if bias else None
    theirs = torch.nn.functional.conv2d(torch.tensor(X).permute(0, 3, 1, 2), kernel, offset, stride, padding)
    mine = jax.jit(module.apply)({"params": params}, X)
    np.testing.assert_allclose(mine, theirs.permute(0, 2, 3, 1), atol=1e-4)
    assert set(params) == ({"kernel", "bias"} if bias else {"kernel"})


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(groups):
    module = GroupNorm(groups, 1e-3)
    params = params_of(module)
    scale, bias = (torch.tensor(params[name]) for name in ("scale", "bias"))
    theirs = torch.nn.functional.group_norm(torch.tensor(X).permute(0, 3, 1, 2), groups, scale, bias, 1e-3)
    mine = jax.jit(module.apply)({"params": params}, X)
    np.testing.assert_allclose(mine, theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="4 channels are no multiple of 3 groups"):
        jax.eval_shape(GroupNorm(3).init, jax.random.key(0), X)
