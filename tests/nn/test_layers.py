"""Norms, MLPs and linear maps against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, MLP
from mmjax.nn.norms import LayerNorm, RMSNorm

NAMES = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_transformers(name):
    x = np.linspace(-6, 6, 101).astype(np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](x), ACT2FN[NAMES[name]](torch.tensor(x)).numpy(), atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_norms_equal_torch(width):
    rng = np.random.default_rng(width)
    x, scale, bias = rng.normal(size=(3, 5, width)) * 4 + 1, rng.normal(size=width), rng.normal(size=width)
    x, scale, bias = (a.astype(np.float32) for a in (x, scale, bias))
    rms = LlamaRMSNorm(width, eps=1e-5)
    rms.weight.data = torch.tensor(scale)
    ours = RMSNorm(1e-5).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(ours, rms(torch.tensor(x)).detach().numpy(), atol=1e-5)
    theirs = torch.nn.functional.layer_norm(
        torch.tensor(x), (width,), torch.tensor(scale), torch.tensor(bias), 1e-6
    )
    ours = LayerNorm(1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_norm_statistics_are_float32_in_bfloat16():
    x = jnp.full((1, 4096), 1.0).at[0, 0].set(200.0)
    out = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096)}}, x.astype(jnp.bfloat16))
    expected = 200.0 / np.sqrt((200.0**2 + 4095) / 4096)
    assert out.dtype == jnp.bfloat16 and float(out[0, 0]) == pytest.approx(expected, rel=1e-2)


def test_linear_contracts_several_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    module = Linear((6, 7), (None,) * 4, in_dims=2, use_bias=True)
    params = jax.tree.map(
        lambda box: box.value, module.init(jax.random.key(1), x), is_leaf=lambda b: hasattr(b, "names")
    )
    params["params"]["bias"] = jnp.arange(42.0).reshape(6, 7)
    expected = np.einsum("abcd,cdef->abef", x, params["params"]["kernel"]) + np.arange(42.0).reshape(6, 7)
    np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp_equals_torch(gated):
    rng = np.random.default_rng(0)
    names = ("gate", "up", "down") if gated else ("up", "down")
    shapes = {"gate": (6, 9), "up": (6, 9), "down": (9, 6)}
    params = {
        n: {"kernel": 0.3 * rng.normal(size=shapes[n]), "bias": rng.normal(size=shapes[n][1])} for n in names
    }
    x = rng.normal(size=(2, 3, 6))
    t = {n: lambda h, p=params[n]: h @ torch.tensor(p["kernel"]) + torch.tensor(p["bias"]) for n in names}
    h = torch.tensor(x)
    inner = (
        torch.nn.functional.silu(t["gate"](h)) * t["up"](h) if gated else torch.nn.functional.silu(t["up"](h))
    )
    ours = MLP(6, 9, "silu", gated=gated, use_bias=True).apply({"params": params}, x.astype(np.float32))
    np.testing.assert_allclose(ours, t["down"](inner).numpy(), atol=1e-5)
