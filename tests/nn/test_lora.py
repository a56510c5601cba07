"""LoRA leaves: identity at the start, merge equal to the low-rank path, numbers equal to peft."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from mmjax.backbones.decoder import Decoder, DecoderConfig
from mmjax.config import ConfigError
from mmjax.nn.linear import Linear
from mmjax.nn.lora import LoRAConfig, add_lora, merge_lora

SIZES = dict(vocab_size=31, width=20, num_layers=2, num_heads=5, num_kv_heads=1, head_dim=4, mlp_width=13)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params):
    tokens = jnp.arange(6).reshape(1, 6)
    decoder = Decoder(config)
    x = decoder.apply({"params": params}, tokens, method="embed")
    return decoder.apply({"params": params}, x, tokens, jnp.tril(jnp.ones((1, 6, 6), bool)))[0]


@pytest.mark.quick("targets0")
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "gate", "up", "down")])
def test_add_is_identity_and_merge_is_exact(targets):
    lora = LoRAConfig(3, 8.0, targets)
    plain, adapted = DecoderConfig(**SIZES), DecoderConfig(**SIZES, lora=lora)
    params = jax.jit(
        lambda: jax.tree.map(
            jnp.asarray, Decoder(plain).init(jax.random.key(0), jnp.zeros((1, 1), int), method="create")
        )
    )()
    params = jax.tree.map(
        lambda box: box.value, params["params"], is_leaf=lambda leaf: hasattr(leaf, "names")
    )
    before = run(plain, params)
    added = add_lora(params, lora, jax.random.key(1))
    np.testing.assert_array_equal(run(adapted, added), before)
    count = sum(
        path[-1].key.startswith("lora_") for path, _ in jax.tree_util.tree_flatten_with_path(added)[0]
    )
    assert count == 2 * len(targets)

    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) if path[-1].key == "lora_b" else leaf
        ),
        added,
    )
    after = run(adapted, moved)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(run(plain, merge_lora(moved, lora)), after, atol=2e-5)
    with pytest.raises(ValueError, match="already"):
        add_lora(added, lora, jax.random.key(1))


def test_low_rank_path_equals_peft():
    layer = torch.nn.Sequential()
    layer.add_module("q", torch.nn.Linear(7, 10, bias=False))
    wrapped = peft.get_peft_model(layer, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q"]))
    module = wrapped.base_model.model.q
    torch.nn.init.normal_(module.lora_B["default"].weight)
    x = torch.randn(4, 7)
    params = {
        "kernel": module.base_layer.weight.detach().numpy().T.reshape(7, 2, 5),
        "lora_a": module.lora_A["default"].weight.detach().numpy().T,
        "lora_b": module.lora_B["default"].weight.detach().numpy().T.reshape(3, 2, 5),
    }
    ours = Linear((2, 5), ("embed", "heads", "head_dim"), lora=LoRAConfig(3, 5.0))
    out = ours.apply({"params": params}, jnp.asarray(x.numpy()))
    np.testing.assert_allclose(out.reshape(4, 10), wrapped(x).detach().numpy(), atol=1e-5)


def test_wrong_configs_are_refused():
    with pytest.raises(ConfigError, match="rank"):
        LoRAConfig(0, 1.0)
    with pytest.raises(ConfigError, match="q_proj"):
        LoRAConfig(2, 1.0, ("q_proj",))
