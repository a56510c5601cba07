"""Norms that a second map scales and shifts, against diffusers."""

import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.attention_processor import SpatialNorm as Theirs

from mmjax.nn.spatial_norm import SpatialNorm


def test_equal_diffusers():
    torch.manual_seed(0)
    theirs = Theirs(64, 3)
    x, guide = torch.randn(2, 64, 6, 4), torch.randn(2, 3, 3, 2)

    def conv(part):
        return {"kernel": jnp.array(part.weight.detach().permute(2, 3, 1, 0)), "bias": jnp.array(part.bias.detach())}

    torch.nn.init.normal_(theirs.norm_layer.weight)
    norm = {"scale": jnp.array(theirs.norm_layer.weight.detach()), "bias": jnp.array(theirs.norm_layer.bias.detach())}
    params = {"norm": norm, "scale": conv(theirs.conv_y), "shift": conv(theirs.conv_b)}
    last = lambda array: array.detach().permute(0, 2, 3, 1).numpy()
    got = SpatialNorm(32).apply({"params": params}, last(x), last(guide))
    np.testing.assert_allclose(got, last(theirs(x, guide)), atol=1e-5)
