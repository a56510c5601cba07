"""Continuous integrate-and-fire against a loop over frames as the paper tells it; scaling, padding, tails, counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.cif import QUANTITY, TARGET, CIFConfig, CIFProjector, firing, quantity_loss, scale_to

CONFIG = CIFConfig(10, 14, 7, hidden=6, window=3, num_heads=5, mlp_width=9, num_features=13)


def integrate_and_fire(weights, features, max_tokens, tail):
    """One row, frame by frame: [N], [N, C] float64 torch -> tokens fired, a list of [C]."""
    tokens, held, state = [], 0.0, torch.zeros(features.shape[1], dtype=torch.float64)
    for weight, feature in zip(weights, features, strict=True):
        while held + weight >= 1:
            need = 1 - held
            tokens.append(state + need * feature)
            weight, held, state = weight - need, 0.0, torch.zeros_like(state)
        held, state = held + weight, state + weight * feature
    if held >= tail:
        tokens.append(state / held)
    return tokens[:max_tokens]


def drawn(rng, rows, frames, most=1.0):
    weights = rng.random((rows, frames)) * most
    weights[0, frames - 3 :] = 0.0
    return weights, rng.normal(size=(rows, frames, 4))


@pytest.mark.parametrize(
    "frames, max_tokens, tail, most", [(1, 3, 0.5, 1.0), (17, 12, 0.5, 1.0), (23, 5, 0.3, 0.9), (6, 20, 0.8, 4.0)]
)
def test_firing_equals_the_loop(tools, random, frames, max_tokens, tail, most):
    weights, features = drawn(random, 4, frames, most)
    cotangent = random.normal(size=(4, max_tokens, 4))

    def tokens_of(weights, features):
        shares, count = firing(weights, max_tokens, tail)
        tokens = shares @ features
        return jnp.sum(tokens * cotangent), (tokens, shares, count)

    run = jax.jit(jax.value_and_grad(tokens_of, argnums=(0, 1), has_aux=True))
    (_, (tokens, shares, count)), slopes = run(weights.astype(np.float32), features.astype(np.float32))
    leaves = [torch.tensor(array, requires_grad=True) for array in (weights, features)]
    total = 0.0
    for row in range(4):
        wanted = integrate_and_fire(leaves[0][row], leaves[1][row], max_tokens, tail)
        assert int(count[row]) == len(wanted)
        padded = np.zeros((max_tokens, 4))
        for number, token in enumerate(wanted):
            padded[number] = token.detach()
            total = total + (token * torch.tensor(cotangent[row, number])).sum()
        tools.close(tokens[row], padded)
        whole = np.arange(max_tokens) < len(wanted)
        np.testing.assert_allclose(shares[row].sum(axis=1), whole, atol=1e-5)
    assert int(count.sum()) > 0
    total.backward()
    for slope, leaf in zip(slopes, leaves, strict=True):
        tools.close(slope, leaf.grad)


def test_scaled_weights_fire_as_often_as_asked(random):
    weights = random.random((5, 1500)).astype(np.float32)
    weights[3, 40:] = 0.0
    weights[4] = 0.0
    target = np.array([1, 97, 300, 11, 2])
    scaled = jax.jit(scale_to)(weights, target)
    np.testing.assert_allclose(scaled.sum(1), [1, 97, 300, 11, 0], rtol=1e-4)
    assert jax.jit(lambda x: firing(x, 400)[1])(scaled).tolist() == [1, 97, 300, 11, 0]
    # Only what a frame is worth beside the others matters: there is no slope along all weights together.
    slope = jax.grad(lambda x: jnp.sum(scale_to(x, target)[:, :7]))(jnp.asarray(weights))
    np.testing.assert_allclose(np.sum(slope * weights, axis=1), 0, atol=1e-3)
    assert np.isfinite(slope).all()


def test_quantity_loss_in_closed_form(random):
    quantity, target = random.random((2, 3)) * 9, random.integers(0, 9, (2, 3))
    gap = np.abs(quantity - target)
    np.testing.assert_allclose(quantity_loss(quantity, target), gap.mean(), rtol=1e-6)
    counted = np.array([[True, False, True], [False, True, True]])
    np.testing.assert_allclose(quantity_loss(quantity, target, counted), gap[counted].mean(), rtol=1e-6)
    assert quantity_loss(quantity, target, np.zeros((2, 3), bool)) == 0
    slope = jax.grad(quantity_loss)(jnp.asarray(quantity), target)
    np.testing.assert_allclose(slope, np.sign(quantity - target) / 6, rtol=1e-6)


def pieces(params, features, seen, config):
    """Weights and tokens before the blocks of one item, by torch's convolution and the loop."""
    conv, weight = params["conv"], params["weight"]
    kernel = torch.tensor(np.asarray(conv["kernel"])).permute(2, 1, 0)
    hidden = torch.nn.functional.conv1d(
        torch.tensor(features * seen[:, None]).T[None], kernel, torch.tensor(conv["bias"]), padding=config.window // 2
    )[0].T
    weights = torch.sigmoid(hidden.relu() @ torch.tensor(weight["kernel"]) + torch.tensor(weight["bias"]))[:, 0]
    weights = weights.double() * torch.tensor(seen)
    return weights, integrate_and_fire(weights, torch.tensor(features).double(), config.max_tokens, config.tail)


def test_projector_with_padding(tools, random):
    config = dataclasses.replace(CONFIG, num_layers=1)
    params = tools.init(config, 13)
    # With its halves' last maps at zero the block adds nothing, and one item's tokens can be followed to the end.
    still = jax.tree.map(np.copy, params)
    for part in (still["blocks"]["attn"]["o"], still["blocks"]["mlp"]["down"]):
        part["kernel"][:], part["bias"][:] = 0, 0
    features = random.normal(size=(2, 39, 10)).astype(np.float32)
    lengths = np.array([[13, 5, 1], [9, 0, 0]])
    seen = np.arange(13) < lengths[..., None]
    segments = np.where(seen, np.arange(1, 4)[:, None], 0).reshape(2, 39).astype(np.int32)
    out = tools.run(config, still, features, segment_ids=segments)
    whole = tools.run(config, params, features, segment_ids=segments)
    assert out.stage == "projected" and out.values.shape == (2, 21, 14)
    counts = []
    for row, item in np.ndindex(2, 3):
        part = slice(13 * item, 13 * item + 13)
        weights, tokens = pieces(params, features[row, part], seen[row, item], config)
        np.testing.assert_allclose(out.extra_features[QUANTITY][row, item], float(weights.sum()), rtol=1e-5)
        expected = np.zeros((7, 14), np.float32)
        for number, token in enumerate(tokens):
            x = token.numpy() + params["position_embedding"][number]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
            expected[number] = x @ params["out"]["kernel"] + params["out"]["bias"]
        place = slice(7 * item, 7 * item + 7)
        tools.close(out.values[row, place], expected)
        assert out.segment_ids[row, place].tolist() == [item + 1] * len(tokens) + [0] * (7 - len(tokens))
        counts.append(len(tokens))
    assert counts[0] > 1 and counts[4:] == [0, 0]
    # Nothing depends on padding frames, on other items, or on tokens that were not fired.
    other = np.where(segments[..., None] > 0, features, 1e3)
    other[0, :13] = random.normal(size=(13, 10))
    changed = tools.run(config, params, other, segment_ids=segments)
    tools.close(changed.values[:, 7:], whole.values[:, 7:])
    assert np.abs(changed.values[0, :7] - whole.values[0, :7]).max() > 1e-2


def test_items_of_many_lengths(tools, random):
    """Without num_features, segment_ids say whose a frame is: the same tokens as with the items padded apart."""
    lengths, features = (4, 13, 6), random.normal(size=(3, 13, 10)).astype(np.float32)
    params = tools.init(CONFIG, 13)
    seen = np.arange(13) < np.array(lengths)[:, None]
    segments = np.where(seen, np.arange(1, 4)[:, None], 0).astype(np.int32)
    padded = tools.run(CONFIG, params, features.reshape(1, 39, 10), segment_ids=segments.reshape(1, 39))
    free = dataclasses.replace(CONFIG, num_features=None)
    grid = np.array([[[length, 1, 1] for length in lengths]], np.int32)
    out = tools.run(free, params, features[seen][None], segment_ids=segments[seen][None], grid=grid)
    tools.close(out.values, padded.values)
    np.testing.assert_array_equal(out.segment_ids, padded.segment_ids)


@pytest.mark.slow
def test_target_in_training(tools, random):
    params = tools.init(CONFIG, 13)
    features = random.normal(size=(2, 26, 10)).astype(np.float32)
    target = np.array([[1, 6], [7, 3]])
    media = Media(features, extra_features={TARGET: target, "stage_0": features}, stage="encoded")

    def run(params, train):
        out = CIFProjector(CONFIG).apply({"params": params}, media, train)
        return quantity_loss(out.extra_features[QUANTITY], target) + jnp.mean(jnp.sin(out.values)), out

    (_, out), slopes = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)(params, True)
    fired = (np.asarray(out.segment_ids) > 0).reshape(2, 2, 7).sum(-1)
    np.testing.assert_array_equal(fired, target)
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
    assert np.abs(slopes["conv"]["kernel"]).max() > 1e-4
    free = jax.jit(run, static_argnums=1)(params, False)[1]
    np.testing.assert_allclose(free.extra_features[QUANTITY], out.extra_features[QUANTITY], rtol=1e-6)
    expected = np.minimum(np.floor(free.extra_features[QUANTITY] + 0.5), 7)
    np.testing.assert_array_equal((np.asarray(free.segment_ids) > 0).reshape(2, 2, 7).sum(-1), expected)
    assert set(free.extra_features) == {QUANTITY, "stage_0"}


def test_bad_options_are_named():
    assert CONFIG.num_tokens(13) == 7
    with pytest.raises(ConfigError, match="num_features is 13, but the encoder gives 12"):
        CONFIG.num_tokens(12)
    for change, words in (
        ({"activation": "gelo"}, "cif projector activation"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"window": 4}, "window must be odd.*got 4"),
        ({"tail": 1.0}, "tail must be between 0 and 1, got 1.0"),
        ({"num_heads": 4}, "in_width 10 is not a multiple of num_heads 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
