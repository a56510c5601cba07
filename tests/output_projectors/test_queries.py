"""The tiny transformer beside torch.nn.Transformer with the same weights, put together as GILL and MiniGPT-5 do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from mmjax.config import ConfigError
from mmjax.output_projectors import OUTPUT_PROJECTORS
from mmjax.output_projectors.queries import QueriesOutputConfig

GILL = QueriesOutputConfig(20, 24, 7, inner_width=12, num_heads=3, mlp_width=28, encoder_layers=2, decoder_layers=3)
MINIGPT5 = QueriesOutputConfig(
    20, 16, 5, inner_width=16, num_heads=4, mlp_width=24, encoder_layers=3, decoder_layers=2, hidden=18,
    pre_norm=True, out_map=False, pooled="mean",
)  # fmt: skip


class Reference(nn.Module):
    def __init__(self, c):
        super().__init__()
        maps = [nn.Linear(c.in_width, c.hidden or c.inner_width)]
        if c.hidden:
            maps += [nn.GELU(), nn.Linear(c.hidden, c.inner_width)]
        self.maps = nn.Sequential(*maps)
        self.queries = nn.Parameter(torch.randn(1, c.num_queries, c.inner_width))
        self.transformer = nn.Transformer(
            c.inner_width, c.num_heads, c.encoder_layers, c.decoder_layers, c.mlp_width, dropout=0.0,
            batch_first=True, norm_first=c.pre_norm,
        )  # fmt: skip
        self.out = nn.Linear(c.inner_width, c.width) if c.out_map else nn.Identity()

    def forward(self, states):
        return self.out(self.transformer(self.maps(states), self.queries.repeat(len(states), 1, 1)))


def attention(module, c):
    heads = (c.num_heads, c.inner_width // c.num_heads)
    weight, bias = module.in_proj_weight.detach().numpy(), module.in_proj_bias.detach().numpy()
    out = {
        name: {"kernel": w.T.reshape(-1, *heads), "bias": b.reshape(heads)}
        for name, w, b in zip("qkv", np.split(weight, 3), np.split(bias, 3), strict=True)
    }
    last = linear(module.out_proj)
    return out | {"o": {"kernel": last["kernel"].reshape(*heads, -1), "bias": last["bias"]}}


def linear(module):
    return {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}


def norm(module):
    return {"scale": module.weight.detach().numpy(), "bias": module.bias.detach().numpy()}


def layer(module, c):
    cross = hasattr(module, "multihead_attn")
    out = {
        "attn": attention(module.self_attn, c),
        "attn_norm": norm(module.norm1),
        "mlp": {"up": linear(module.linear1), "down": linear(module.linear2)},
        "mlp_norm": norm(module.norm3 if cross else module.norm2),
    }
    if cross:
        out |= {"cross_attn": attention(module.multihead_attn, c), "cross_norm": norm(module.norm2)}
    return out


def params_of(reference, c):
    out = {"queries": reference.queries.detach().numpy()[0], "in_1": linear(reference.maps[0])}
    if c.hidden:
        out["in_2"] = linear(reference.maps[2])
    for side in ("encoder", "decoder"):
        part = getattr(reference.transformer, side)
        layers = [layer(one, c) for one in part.layers]
        out[side] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
        out[f"{side}_norm"] = norm(part.norm)
    if c.out_map:
        out["out"] = linear(reference.out)
    return out


@pytest.mark.parametrize("config", [GILL, MINIGPT5], ids=["gill", "minigpt5"])
def test_equal_to_torch_with_gradients(config):
    torch.manual_seed(0)
    reference = Reference(config)
    with torch.no_grad():
        for leaf in reference.parameters():
            leaf.add_(0.1 * torch.randn_like(leaf))
    params = params_of(reference, config)
    module = OUTPUT_PROJECTORS[type(config)](config)
    states = np.random.default_rng(0).normal(size=(3, 4, config.in_width)).astype(np.float32)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(states))["params"])
    is_box = lambda leaf: hasattr(leaf, "names")
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda box: box.value.shape, made, is_leaf=is_box)

    @jax.jit
    def run(params, states):
        return module.apply({"params": params}, states)

    given = torch.tensor(states, requires_grad=True)
    wanted = reference(given)
    found = run(params, states)
    assert found.sequence.shape == (3, config.num_tokens(4), config.width)
    np.testing.assert_allclose(found.sequence, wanted.detach().numpy(), atol=1e-4)
    if config.pooled == "mean":
        np.testing.assert_allclose(found.pooled, wanted.mean(1).detach().numpy(), atol=1e-4)
    weight = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    (wanted * torch.tensor(weight)).sum().backward()
    by_params, by_states = jax.jit(jax.grad(lambda p, s: jnp.sum(run(p, s).sequence * weight), (0, 1)))(params, states)
    np.testing.assert_allclose(by_states, given.grad.numpy(), atol=1e-4)
    np.testing.assert_allclose(by_params["queries"], reference.queries.grad.numpy()[0], atol=1e-4)
    first = reference.transformer.encoder.layers[0].linear1.weight.grad.numpy().T
    np.testing.assert_allclose(by_params["encoder"]["mlp"]["up"]["kernel"][0], first, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_heads": 5}, "inner_width 12"),
        ({"out_map": False}, "without out_map"),
        ({"num_queries": 0}, "num_queries"),
        ({"pooled": "max"}, "pooled"),
    ],
)
def test_bad_options_are_named(change, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(GILL, **change)
