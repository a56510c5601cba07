"""Convolutions that look back in time, against transformers, and their property."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.emu3.modeling_emu3 import Emu3VQVAEConv3d

from mmjax.nn.causal_conv import CausalConv


@pytest.mark.parametrize(("window", "stride"), [((3, 3, 3), (1, 1, 1)), ((4, 3, 3), (2, 1, 1)), ((3, 4, 1), (1, 1, 1))])
def test_equal_transformers_and_blind_to_what_comes(window, stride):
    torch.manual_seed(0)
    theirs = Emu3VQVAEConv3d(2, 5, window, stride)
    kernel, bias = theirs.conv.weight.detach().numpy(), theirs.conv.bias.detach().numpy()
    params = {"params": {"kernel": np.moveaxis(kernel, (0, 1), (-1, -2)), "bias": bias}}
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 4, 2)).astype(np.float32)
    module = CausalConv(5, window, stride)
    got = module.apply(params, x)
    with torch.no_grad():
        wanted = theirs(torch.tensor(np.moveaxis(x, -1, 1))).numpy()
    np.testing.assert_allclose(got, np.moveaxis(wanted, 1, -1), atol=1e-5)
    later = module.apply(params, jnp.asarray(x).at[:, 4:].set(9))
    seen = 4 // stride[0]
    np.testing.assert_array_equal(later[:, :seen], got[:, :seen])
    assert np.abs(later[:, seen:] - got[:, seen:]).max() > 0.1
