"""Experts: both routings against a loop in numpy, on meshes, their load and its loss against transformers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.distributed.mesh import MeshConfig, check_fits, make_mesh
from mmjax.distributed.rules import shardings
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.moe import Mixture, MixtureConfig, load_balancing_loss, route, router_load

B, T, D, E, F = 4, 6, 12, 4, 10
PLAIN = MixtureConfig(E, 2, F)
VARIANTS = {
    "mixtral": PLAIN,
    "one of all": MixtureConfig(E, 1, F, normalize=False),
    "all": MixtureConfig(3, 3, 7),
    "shared, gated": MixtureConfig(5, 3, 8, normalize=False, shared_width=9, shared_gate=True),
    "shared": MixtureConfig(E, 2, F, shared_width=6),
}


def boxed(config, gated=True):
    init = jax.jit(Mixture(D, config, "silu", gated).init)
    return init(jax.random.key(0), jnp.zeros((1, 1, D)))["params"]


def weights(config, gated=True, skew=1.0):
    """Params whose router, times `skew`, is decided enough that rounding changes no choice."""
    params = nn.unbox(boxed(config, gated))
    return {**params, "router": {"kernel": params["router"]["kernel"] * skew}}


def apply(config, params, x, gated=True, dtype=jnp.float32):
    return Mixture(D, config, "silu", gated, dtype).apply({"params": params}, x)


compiled = jax.jit(apply, static_argnums=(0, 3, 4))


def loss_of(config, gated=True):
    def loss(params, x):
        y, logits = apply(config, params, x, gated)
        return jnp.sum(jnp.sin(y)) + load_balancing_loss(logits, config.top_k), y

    return loss


def inputs(batch=B, length=T, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, D)), jnp.float32)


def by_hand(config, params, x, gated):
    """One token and one expert at a time, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731

    def feed(kernels, z, at=()):
        up = z @ kernels["up"]["kernel"][at]
        h = silu(z @ kernels["gate"]["kernel"][at]) * up if gated else silu(up)
        return h @ kernels["down"]["kernel"][at]

    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        z = x[place]
        odds = np.exp(z @ p["router"]["kernel"])
        odds /= odds.sum()
        picked = np.argsort(-odds)[: config.top_k]
        total = odds[picked].sum() if config.normalize else 1.0
        out[place] = sum(odds[e] / total * feed(p["experts"], z, e) for e in picked)
        if config.shared_width is not None:
            scale = 1 / (1 + np.exp(-(z @ p["shared_gate"]["kernel"]))) if config.shared_gate else 1.0
            out[place] += scale * feed(p["shared"], z)
    return out


@pytest.mark.quick("mixtral-True", "shared, gated-True")
@pytest.mark.parametrize("name, gated", [*((name, True) for name in VARIANTS), ("shared", False)])
def test_every_routing_equals_a_loop_over_tokens(name, gated):
    config, x = VARIANTS[name], inputs(3, 5)
    params = weights(config, gated)
    expected = by_hand(config, params, x, gated)
    for routing in ("dense", "grouped", "auto") if config is PLAIN else ("dense", "grouped"):
        routed = dataclasses.replace(config, routing=routing)
        y, logits = compiled(routed, params, x, gated)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(logits, x @ params["router"]["kernel"], atol=1e-5)


@pytest.mark.quick("shared, gated-1.0")
@pytest.mark.parametrize("name, skew", [("mixtral", 30.0), ("shared, gated", 1.0)])
def test_grouped_gradients_equal_dense_ones(name, skew):
    config, x = VARIANTS[name], inputs()
    params = weights(config, skew=skew)
    grads = {}
    for routing in ("dense", "grouped"):
        loss = loss_of(dataclasses.replace(config, routing=routing))
        grads[routing] = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads["grouped"], grads["dense"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads["grouped"]))


@pytest.mark.slow
def test_experts_that_nobody_picks_get_no_gradient():
    config = MixtureConfig(E, 1, F, routing="grouped")
    params = weights(config)
    params["router"]["kernel"] = jnp.zeros((D, E)).at[:, 2].set(1.0)
    x = jnp.abs(inputs())
    loads = router_load(x @ params["router"]["kernel"], 1)
    np.testing.assert_array_equal(loads, [0, 0, 1, 0])
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply(config, p, x)[0]))))(params)["experts"]
    for leaf in jax.tree.leaves(grads):
        assert not np.any(leaf[np.array([0, 1, 3])]) and np.any(leaf[2])


MESHES = [
    ("grouped", {"expert": 4, "data": 2}),
    ("grouped", {"expert": 2, "tensor": 2, "fsdp": 2}),
    ("dense", {"expert": 2, "context": 2, "data": 2}),
    pytest.param("grouped", {"expert": 2, "context": 2, "data": 2}, marks=pytest.mark.slow),
    pytest.param("auto", {"expert": 4, "tensor": 2}, marks=pytest.mark.slow),
]


@pytest.mark.quick("grouped-axes0")
@pytest.mark.parametrize("routing, axes", MESHES)
def test_a_mesh_changes_no_number_and_no_gradient(routing, axes):
    config = dataclasses.replace(PLAIN, routing=routing, shared_width=8, shared_gate=True)
    box, x = boxed(config), inputs()
    params = nn.unbox(box)
    dense = jax.value_and_grad(loss_of(dataclasses.replace(config, routing="dense")), (0, 1), has_aux=True)
    (value, y), grads = jax.jit(dense)(params, x)
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:8])
    names = jax.tree.map(lambda leaf: leaf.names, box, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    check_fits(params, names, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(names, mesh))
        kernel = placed["experts"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[0] == E // axes["expert"]
        there = jax.device_put(x, shardings(("batch", "length", "act_embed"), mesh))
        run = jax.jit(jax.value_and_grad(loss_of(config), (0, 1), has_aux=True))
        (value_there, y_there), grads_there = run(placed, there)
    np.testing.assert_allclose(value_there, value, rtol=1e-5)
    np.testing.assert_allclose(y_there, y, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads_there, grads)


def test_one_prompt_on_a_mesh_that_does_not_divide_it_and_experts_that_it_does_not():
    config, x = dataclasses.replace(PLAIN, routing="grouped"), inputs(1, 5)
    params = weights(config)
    odd = MixtureConfig(3, 1, F, routing="grouped")
    expected, _ = compiled(config, params, x)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, expert=4))):
        y, _ = jax.jit(lambda p, x: apply(config, p, x))(params, x)
        with pytest.raises(ConfigError, match="expert 3 is not a multiple of the mesh's 4"):
            jax.jit(lambda p, x: apply(odd, p, x))(weights(odd), x)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_the_router_is_in_float32_where_the_rest_is_not():
    x = inputs()
    for routing in ("dense", "grouped"):
        config = dataclasses.replace(PLAIN, routing=routing)
        params = weights(config)
        y, logits = compiled(config, params, x, True, jnp.bfloat16)
        exact, _ = compiled(config, params, x.astype(jnp.bfloat16).astype(jnp.float32))
        assert y.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
        np.testing.assert_allclose(
            logits, x.astype(jnp.bfloat16).astype(jnp.float32) @ params["router"]["kernel"], atol=1e-5
        )
        np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.quick("3-2-True")
@pytest.mark.parametrize("layers, top_k, masked", [(1, 1, False), (3, 2, False), (3, 2, True), (2, 5, True)])
def test_load_and_its_loss_equal_transformers(layers, top_k, masked):
    rng = np.random.default_rng(top_k)
    logits = rng.normal(size=(layers, 3, 7, 5)).astype(np.float32) * 2
    mask = np.arange(7) < np.array([7, 4, 2])[:, None]
    tensor = torch.tensor(logits, requires_grad=True)
    theirs = load_balancing_loss_func(
        tuple(tensor[i].reshape(-1, 5) for i in range(layers)), 5, top_k, torch.tensor(mask) if masked else None
    )
    theirs.backward()
    loss = lambda logits: load_balancing_loss(logits, top_k, mask if masked else None)  # noqa: E731
    value, grad = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, tensor.grad.numpy(), atol=1e-6)
    load = router_load(jnp.asarray(logits), top_k, mask if masked else None)
    counted = np.zeros(5)
    seen = np.broadcast_to(mask if masked else True, logits.shape[:3])
    for token in logits[seen]:
        counted[np.argsort(-token)[:top_k]] += 1
    np.testing.assert_allclose(load, counted / seen.sum(), atol=1e-6)


def test_even_use_is_where_the_loss_is_least():
    even = jnp.eye(E)[jnp.arange(8) % E]
    assert float(load_balancing_loss(even, 1)) == pytest.approx(1.0)
    np.testing.assert_allclose(router_load(even, 1), np.full(E, 1 / E))
    assert float(load_balancing_loss(jnp.eye(E)[jnp.zeros(8, int)] * 9, 1)) == pytest.approx(E, rel=1e-2)
    assert float(load_balancing_loss(even, 1, jnp.zeros(8, bool))) == 0.0
    one, three = (route(even, 3, normalize)[0].sum(-1) for normalize in (True, False))
    np.testing.assert_allclose(one, 1.0, rtol=1e-6)
    assert (three < 0.95).all()


@pytest.mark.slow
def test_a_block_gives_its_routers_logits_on_demand():
    config = BlockConfig(D, 14, 2, 1, 4, "silu", "rms", 1e-6, gated=True, moe=PLAIN)
    for parallel in (False, True):
        block, x = Block(dataclasses.replace(config, parallel=parallel)), inputs()
        params = nn.unbox(block.init(jax.random.key(0), x))
        y, cache = block.apply(params, x)
        again, (none, logits) = block.apply(params, x, router_logits=True)
        assert cache is None and none is None and logits.shape == (B, T, E)
        np.testing.assert_array_equal(y, again)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MixtureConfig(4, 5, 8), "moe.top_k must be from 1 to num_experts 4, got 5"),
        (lambda: MixtureConfig(4, 0, 8), "moe.top_k"),
        (lambda: MixtureConfig(0, 1, 8), "moe.num_experts must be at least 1, got 0"),
        (lambda: MixtureConfig(4, 1, 8, shared_width=0), "moe.shared_width must be at least 1"),
        (lambda: MixtureConfig(4, 1, 8, shared_gate=True), "shared_gate needs shared_width"),
        (lambda: MixtureConfig(4, 1, 8, routing="groped"), 'routing.*"grouped"'),
        (lambda: BlockConfig(8, 8, 2, 2, 4, "silu", "rms", 1e-6, mlp_bias=True, moe=PLAIN), "moe and mlp_bias"),
        (lambda: BlockConfig(8, 8, 2, 2, 4, "silu", "rms", 1e-6, lora=LoRAConfig(2, 4), moe=PLAIN), "lora.targets"),
        (lambda: from_dict(MixtureConfig, {**to_dict(PLAIN), "topk": 2}), "topk"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
