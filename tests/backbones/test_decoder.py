"""The decoder's options: both forms of its blocks, gradients, adapters, and what cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import Decoder, DecoderConfig
from mmjax.config import ConfigError
from mmjax.infer.cache import unstack
from mmjax.nn.lora import LoRAConfig, add_lora
from mmjax.nn.masks import windowed
from mmjax.nn.moe import MixtureConfig, load_balancing_loss

PLAIN = DecoderConfig(31, 12, 5, 2, 1, 6, 20, max_positions=16)
MIXED = dataclasses.replace(
    PLAIN, sliding_window=3, window_pattern=(True, True, False), window_rope_theta=50.0, post_norms=True
)  # fmt: skip


def run(config, params, tokens, remat="none"):
    return jax.jit(run_eagerly, static_argnums=(0, 3))(config, params, tokens, remat)


def run_eagerly(config, params, tokens, remat):
    module = Decoder(config, remat=remat)
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    embeddings = module.apply({"params": params}, tokens, method="embed")
    return module.apply({"params": params}, embeddings, positions, mask)[0]


def init(config):
    params = Decoder(config).init(jax.random.key(0), jnp.zeros((1, 1), int), method="create")["params"]
    return jax.tree.map(lambda box: getattr(box, "value", box), params, is_leaf=lambda box: hasattr(box, "names"))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 9)))


@pytest.mark.slow
def test_windowed_and_other_layers_in_both_forms_of_blocks():
    params = init(MIXED)
    scanned = run(MIXED, params, TOKENS)
    unrolled = run(MIXED, unstack({"backbone": params})["backbone"], TOKENS)
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)
    swapped = dataclasses.replace(MIXED, window_pattern=(False, True, True))
    assert np.abs(scanned - run(swapped, params, TOKENS)).max() > 1e-3
    # A window as long as the text hides nothing.
    wide = dataclasses.replace(MIXED, sliding_window=9, window_rope_theta=None)
    none = dataclasses.replace(wide, sliding_window=None, window_pattern=(True,))
    np.testing.assert_allclose(run(wide, params, TOKENS), run(none, params, TOKENS), atol=1e-5)


@pytest.mark.slow
def test_gradients_pass_through_scanned_kinds_of_layers_with_any_remat():
    params = init(MIXED)

    def loss(params, remat):
        return jnp.sum(jnp.square(run(MIXED, params, TOKENS, remat)))

    grads = [jax.grad(loss)(params, remat) for remat in ("none", "full")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *grads)
    blocks = jax.tree.leaves(grads[0]["blocks"])
    assert all(np.abs(leaf).reshape(5, -1).max(axis=1).min() > 0 for leaf in blocks)


def test_layer_kinds_follow_the_pattern():
    assert MIXED.window_layers == (True, True, False, True, True)
    assert PLAIN.window_layers == (False,) * 5
    mask = jnp.tril(jnp.ones((1, 4, 4), bool))
    assert windowed(mask, 2).sum() == 7


@pytest.mark.slow
def test_adapters_on_a_plain_mlp():
    lora = LoRAConfig(rank=2, alpha=4.0, targets=("q", "up", "down"))
    config = dataclasses.replace(PLAIN, gated=False, norm="layer", position="learned", parallel=True, shared_norm=True)
    params = init(config)
    adapted = add_lora(params, lora, jax.random.key(1))
    assert "lora_a" in adapted["blocks"]["mlp"]["up"] and "lora_a" in adapted["blocks"]["mlp"]["down"]
    assert "gate" not in params["blocks"]["mlp"] and "mlp_norm" not in params["blocks"]
    with_lora = dataclasses.replace(config, lora=lora)
    np.testing.assert_allclose(run(with_lora, adapted, TOKENS), run(config, params, TOKENS), atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(head_dim=5), "head_dim 5"),
        (dict(rotary_fraction=0.5), "rotary_fraction 0.5.*not 3"),
        (dict(rotary_fraction=0.0), "rotary_fraction 0.0"),
        (dict(position="absolute"), "backbone.position"),
        (dict(sliding_window=0), "backbone.sliding_window"),
        (dict(sliding_window=4, window_pattern=(False,)), "backbone.window_pattern"),
        (dict(logit_cap=-1.0), "backbone.logit_cap"),
        (dict(attention_scale=0.0), "backbone.attention_scale"),
        (dict(norm="batch"), "norm: 'batch'"),
        (dict(shared_norm=True), "shared_norm needs parallel"),
        (dict(post_norms=True, parallel=True), "post_norms and parallel"),
    ],
)
def test_options_that_cannot_be_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **changes)


@pytest.mark.slow
def test_heads_of_odd_width_where_nothing_rotates():
    config = dataclasses.replace(PLAIN, head_dim=5, position="alibi", num_kv_heads=2)
    assert np.isfinite(run(config, init(config), TOKENS)).all()


@pytest.mark.slow
def test_experts_in_both_forms_of_blocks_and_their_routers_logits():
    config = dataclasses.replace(PLAIN, num_layers=2, moe=MixtureConfig(4, 2, 9))
    params = init(config)
    assert params["blocks"]["mlp"]["experts"]["up"]["kernel"].shape == (2, 4, 12, 9)
    positions = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)
    mask = jnp.tril(jnp.ones((9, 9), bool))[None]

    def balance(params):
        module = Decoder(config, remat="full")
        embeddings = module.apply({"params": params}, TOKENS, method="embed")
        hidden, cache, logits = module.apply({"params": params}, embeddings, positions, mask, router_logits=True)
        assert cache is None
        return load_balancing_loss(logits, 2, jnp.ones(TOKENS.shape, bool)), (hidden, logits)

    (_, (hidden, logits)), grads = jax.jit(jax.value_and_grad(balance, has_aux=True))(params)
    assert logits.shape == (2, 2, 9, 4) and logits.dtype == jnp.float32
    np.testing.assert_allclose(hidden, run(config, params, TOKENS), atol=1e-5)
    _, looped = jax.jit(balance)(unstack({"backbone": params})["backbone"])
    for mine, theirs in zip((hidden, logits), looped, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    routers = grads["blocks"]["mlp"]["router"]["kernel"]
    assert all(float(jnp.abs(routers[layer]).max()) > 0 for layer in range(2))
    with pytest.raises(ConfigError, match="router_logits: backbone.moe is None"):
        Decoder(PLAIN).apply({"params": init(PLAIN)}, jnp.zeros((1, 2, 12)), positions[:1, :2], mask[:, :2, :2],
                             router_logits=True)  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_new_rows_that_are_not_tied_are_said_by_their_own(bias):
    config = DecoderConfig(
        23, 12, 1, 2, 1, 6, 16, tie_embeddings=True, new_tokens=3, untied_new_tokens=True, head_bias=bias
    )
    params = init(config)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), params)
    hidden = random.normal(size=(2, 4, 12)).astype(np.float32)
    logits = Decoder(config).apply({"params": params}, hidden, method="logits")
    old, new = hidden @ params["embed"]["embedding"].T, hidden @ params["lm_head_new"]["kernel"]
    if bias:
        old, new = old + params["lm_head"]["bias"], new + params["lm_head_new"]["bias"]
    np.testing.assert_allclose(logits, np.concatenate([old, new], -1), atol=1e-5)
    embedded = Decoder(config).apply({"params": params}, np.array([[1, 20, 22]]), method="embed")
    rows = [params["embed"]["embedding"][1], *params["embed_new"]["embedding"][np.array([0, 2])]]
    np.testing.assert_array_equal(embedded[0], rows)
    assert set(params["lm_head"]) == {"bias"} if bias else "lm_head" not in params
