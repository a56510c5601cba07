"""A codebook: the nearest code, gradients as in torch, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.generators.vector_quantizer import VectorQuantizer, unit_length


def test_nearest_by_hand():
    module = VectorQuantizer(3, 2)
    book = {"params": {"codebook": jnp.array([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]])}}
    found = module.apply(book, jnp.array([[[0.9, 0.0], [1.1, 5.0], [9.0, 0.0]]]))
    # Of two equal codes the first.
    assert found.codes.tolist() == [[0, 1, 1]] and found.codes.dtype == jnp.int32
    np.testing.assert_allclose(found.values, [[[0, 0], [2, 0], [2, 0]]], atol=1e-6)
    np.testing.assert_allclose(found.loss, 1.25 * (0.9**2 + 0.9**2 + 5**2 + 7**2) / 6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"vectors are \(1, 3\); wanted \[..., 2\]"):
        module.apply(book, jnp.zeros((1, 3)))


def test_lookup_and_unit_length():
    book = {"params": {"codebook": jnp.array([[3.0, 4.0], [0.0, 0.0]])}}
    found = VectorQuantizer(2, 2).apply(book, jnp.array([[0, 1]]), method="lookup")
    np.testing.assert_allclose(found, [[[3, 4], [0, 0]]])
    np.testing.assert_allclose(unit_length(found), [[[0.6, 0.8], [0, 0]]], rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(unit_length(x)))(found)))


def test_gradients_equal_torch():
    from diffusers.models.autoencoders.vae import VectorQuantizer as Theirs

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    weights = rng.normal(size=vectors.shape).astype(np.float32)
    theirs = Theirs(7, 4, beta=0.25)
    torch.manual_seed(0)
    theirs.embedding.weight.data.normal_()
    leaf = torch.tensor(vectors.transpose(0, 3, 1, 2), requires_grad=True)
    values, loss, _ = theirs(leaf)
    (loss + (values * torch.tensor(weights.transpose(0, 3, 1, 2))).sum()).backward()

    def slope(book, x):
        out = VectorQuantizer(7, 4).apply({"params": {"codebook": book}}, x)
        return out.loss + jnp.sum(out.values * weights)

    book, x = jax.grad(slope, argnums=(0, 1))(theirs.embedding.weight.detach().numpy(), vectors)
    np.testing.assert_allclose(book, theirs.embedding.weight.grad, atol=1e-6)
    np.testing.assert_allclose(x, leaf.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)
