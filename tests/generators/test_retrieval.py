"""Signals that find images, and signals that are decided about: losses beside torch, padding, what does not fit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.encoders.text import TextEncoderConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.generators.decision import DecisionConfig
from mmjax.generators.retrieval import Retrieval, RetrievalConfig, contrastive_loss
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.output_projectors import LinearOutputConfig, MLPOutputConfig
from mmjax.paths import flatten
from mmjax.signals import decide, retrieval_items, signal_states
from mmjax.train.signal_loss import SignalLoss, loss_of
from mmjax.train.stage import StageConfig, split
from mmjax.train.step import init_state, make_train_step, state_shardings

SIGNAL = (38, 39)
CONFIG = MultimodalLMConfig(
    DecoderConfig(40, 16, 2, 2, 2, 8, 24, lora=LoRAConfig(2, 4.0, ("q", "v"))),
    generators={"find": RetrievalConfig(12, 8), "decision": DecisionConfig(16)},
    output_projectors={"find": MLPOutputConfig(16, 20, 8), "decision": LinearOutputConfig(16, 16, "mean")},
    signal_tokens={"find": SIGNAL, "decision": SIGNAL},
    generator_encoders={"find": ViTConfig(16, 8, 12, 1, 2, 16)},
)
MODEL = MultimodalLM(CONFIG)
# Rows and numbers of the signals that count: one of the first row is padding, the last row's weight is 0.
COUNTED = [(0, 4), (1, 2), (1, 8)]


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
    return jax.tree.map(draw, MODEL.param_shapes())


def example(seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 37, (3, 12)).astype(np.int32)
    tokens[0, 4:6] = tokens[1, 2:4] = tokens[1, 8:10] = tokens[2, 5:7] = SIGNAL
    ones = np.ones_like(tokens)
    positions = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    return TextStream(tokens, positions, ones, loss_weights=(positions > 0).astype(np.float32))


def targets(seed=2):
    weights = np.array([[1, 1], [1, 1], [0, 0]], np.float32)
    random = np.random.default_rng(seed)
    features, images = random.normal(size=(3, 2, 12)), random.normal(size=(3, 2, 16, 16, 3))
    find = {"features": features.astype(np.float32), "weights": weights}
    choice = np.array([[1, 0], [-1, 0], [1, 1]], np.int32)
    return find, images.astype(np.float32), {"choice": choice, "weights": weights}


def weights_of(leaves):
    return torch.tensor(np.asarray(leaves["kernel"])).requires_grad_(), torch.tensor(np.asarray(leaves["bias"]))


def reference(params, hidden):
    """Both losses in torch of the hidden states, and the maps whose gradients are compared."""
    find, _, decision = targets()
    states = torch.stack([hidden[row, at : at + 2] for row, at in COUNTED])
    own = params["output_projectors"]
    (a, b), (c, d) = (weights_of(own["find"][name]) for name in ("fc1", "fc2"))
    asked = (torch.relu(states @ a + b) @ c + d).mean(1)
    inside = params["generators"]["find"]
    (image_map, bias), (asked_map, asked_bias) = (weights_of(inside[name]) for name in ("images", "condition"))
    features = torch.tensor(find["features"])[[0, 1, 1], [0, 0, 1]]
    found = torch.nn.functional.normalize(features @ image_map + bias, dim=-1)
    asked = torch.nn.functional.normalize(asked @ asked_map + asked_bias, dim=-1)
    scale = torch.tensor(np.asarray(inside["logit_scale"])).requires_grad_()
    logits, which = asked @ found.T * scale.exp(), torch.arange(3)
    entropy = torch.nn.functional.cross_entropy
    retrieval = (entropy(logits, which) + entropy(logits.T, which)) / 2
    kernel, bias = weights_of(own["decision"]["out"])
    out, out_bias = weights_of(params["generators"]["decision"]["out"])
    logits = (states @ kernel + bias).mean(1) @ out + out_bias
    # Nobody said what should be done about the second of the three.
    chosen = torch.tensor(decision["choice"])[[0, 1], [0, 1]].long()
    decided = entropy(logits[[0, 2]], chosen)
    return retrieval, decided, logits.softmax(-1), {"fc1": a, "images": image_map, "logit_scale": scale, "out": out}


@pytest.fixture(scope="module")
def ours(params):
    """Means, gradients, hidden states, and probabilities of our own in one program."""

    def run(params, find, decision):
        batch = Batch({"text": example()}, {}, targets={"find": find, "decision": decision})
        loss = SignalLoss(text=0.0, retrieval=2.0, decision=0.5)
        total, aux = loss(MODEL, params, batch)
        return total / aux["weight"], {name: aux[name] / aux["weight"] for name in ("retrieval", "decision")}

    step = jax.jit(jax.value_and_grad(run, has_aux=True))

    @jax.jit
    def inner(params):
        hidden = MODEL.forward(params, {"text": example()})
        states, _ = signal_states(MODEL, "decision", example(), hidden, 2)
        return hidden, decide(MODEL, params, "decision", states)

    return step, *inner(params)


def test_losses_and_gradients_are_torchs(params, ours):
    step, hidden, probabilities = ours
    find, _, decision = targets()
    (value, means), grads = step(params, find, decision)
    # torch's gradient of the hidden states, led on through our own LLM, is what its adapters get.
    states = torch.tensor(np.array(hidden)).requires_grad_()
    retrieval, decided, wanted, maps = reference(params, states)
    (2 * retrieval + 0.5 * decided).backward()
    np.testing.assert_allclose(means["retrieval"], retrieval.item(), rtol=1e-5)
    np.testing.assert_allclose(means["decision"], decided.item(), rtol=1e-5)
    np.testing.assert_allclose(value, 2 * retrieval.item() + 0.5 * decided.item(), rtol=1e-5)
    np.testing.assert_allclose(probabilities[[0, 1, 1], [0, 0, 1]], wanted.detach(), atol=1e-5)

    def same(found, wanted):
        wanted = np.asarray(wanted)
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())

    own = grads["generators"]
    same(grads["output_projectors"]["find"]["fc1"]["kernel"], maps["fc1"].grad)
    same(own["find"]["images"]["kernel"], maps["images"].grad)
    same(own["find"]["logit_scale"], maps["logit_scale"].grad)
    same(own["decision"]["out"]["kernel"], maps["out"].grad)

    @jax.jit
    def led(params, by):
        _, back = jax.vjp(lambda params: MODEL.forward(params, {"text": example()}), params)
        return back(by)[0]

    through = flatten(led(params, jnp.asarray(states.grad.numpy())))
    adapters = [path for path in through if path.endswith(("lora_a", "lora_b"))]
    assert len(adapters) == 4
    for path in adapters:
        same(flatten(grads)[path], through[path])


def test_padding_is_neither_asked_for_nor_found(params, ours):
    step, _, _ = ours
    find, images, decision = targets()
    (_, wanted), grads = step(params, find, decision)
    other = {**find, "features": find["features"].copy()}
    # The first row has no second signal, the last row is padding.
    other["features"][0, 1], other["features"][2] = 7, -3
    (_, found), same = step(params, other, {**decision, "choice": np.array([[1, 1], [-1, 0], [0, 0]], np.int32)})
    assert found == wanted
    jax.tree.map(np.testing.assert_array_equal, same, grads)
    other["features"][1, 1] = 7
    assert step(params, other, decision)[0][1]["retrieval"] != wanted["retrieval"]
    nothing = np.zeros((3, 2), np.float32)
    (value, _), grads = step(params, {**find, "weights": nothing}, {**decision, "weights": nothing})
    assert value == 0 and all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_images_go_through_the_encoder_which_learns_nothing(params):
    find, images, _ = targets()
    flat, tower = images.reshape(6, 16, 16, 3), ViT(CONFIG.generator_encoders["find"])

    @jax.jit
    def run(params):
        pooled = tower.apply({"params": params["generator_encoders"]["find"]}, flat, method="run")["pooled"]
        mean = lambda target: SignalLoss()(MODEL, params, Batch({"text": example()}, {}, targets={"find": target}))[1]
        both = [
            {"images": images, "weights": find["weights"]},
            {"features": pooled.reshape(3, 2, 12), "weights": find["weights"]},
        ]
        alone = retrieval_items(MODEL, params, "find", flat), retrieval_items(MODEL, params, "find", pooled)
        learn = jax.grad(lambda params: jnp.sum(retrieval_items(MODEL, params, "find", flat)[:, 0]))(params)
        return [mean(target)["retrieval"] for target in both], alone, learn

    (one, other), (seen, given), learned = run(params)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(seen, given, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=-1), 1, rtol=1e-5)
    assert np.asarray(learned["generators"]["find"]["images"]["kernel"]).any()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(learned["generator_encoders"]))


def test_a_contrast_of_nothing_is_nothing():
    run = jax.jit(jax.value_and_grad(contrastive_loss))
    value, grad = run(np.ones((3, 3), np.float32), np.zeros(3, np.float32))
    assert value == 0 and not np.asarray(grad).any()
    # One alone is told apart from nothing.
    value, grad = run(np.full((3, 3), 5, np.float32), np.float32([0, 1, 0]))
    assert value == 0 and not np.asarray(grad).any()


def test_a_fresh_temperature_is_clips():
    for with_map in (True, False):
        module = Retrieval(RetrievalConfig(12, 8, with_map))
        make = jax.jit(lambda key, module=module: module.init(key, jnp.zeros((1, 12)), method="create"))
        fresh = nn.unbox(make(jax.random.key(0)))["params"]
        assert fresh["logit_scale"] == pytest.approx(np.log(1 / 0.07))
        assert set(fresh) == {"images", "logit_scale"} | ({"condition"} if with_map else set())


def test_config_goes_through_plain_data_and_knows_what_does_not_fit():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    encoders = lambda **parts: dataclasses.replace(CONFIG, generator_encoders=parts)
    vit, text = CONFIG.generator_encoders["find"], TextEncoderConfig(20, 12, 1, 2, 20, 4)
    with pytest.raises(ConfigError, match="10 channels, in_width is 12"):
        encoders(find=dataclasses.replace(vit, projection_dim=10))
    with pytest.raises(ConfigError, match="finds images"):
        encoders(find=text)
    with pytest.raises(ConfigError, match="reads no encoder"):
        encoders(decision=vit)
    with pytest.raises(ConfigError, match="num_choices"):
        DecisionConfig(16, 1)
    with pytest.raises(ConfigError, match="in_width"):
        RetrievalConfig(0, 8)
    with pytest.raises(ConfigError, match="loss_weights"):
        loss_of(MODEL, {"retreival": 1.0})
    assert loss_of(MODEL, {"retrieval": 3.0}).retrieval == 3
    with pytest.raises(ValueError, match="no encoder"):
        retrieval_items(MultimodalLM(encoders()), {}, "find", np.zeros((1, 16, 16, 3)))


STAGE = StageConfig(
    name="all",
    steps=1,
    batch_size=8,
    trainable=(("backbone/.*/lora_[ab]", "train"), ("output_projectors/.*", "train"), ("generators/.*", "train")),
)


def step_on(axes, params):
    """Leaves before and behind a step of plain gradient descent with rate 1, and its metrics."""
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[: 8 if axes else 1])
    places = shardings(flatten(MODEL.param_axes()), mesh)
    trainable, frozen = split(jax.tree.map(np.array, params), STAGE)
    optimizer = optax.sgd(1.0)
    layout = state_shardings(trainable, optimizer, places)
    state = init_state(trainable, optimizer, layout)
    frozen = {path: jax.device_put(leaf, places[path]) for path, leaf in frozen.items()}
    eight = lambda part: jax.tree.map(lambda leaf: np.concatenate([leaf] * 3)[:8], part)
    (find, _, decision), (more, *_) = targets(), targets(5)
    find, decision = eight(find), eight(decision)
    find["features"][3:6] = more["features"]
    batch = Batch({"text": eight(example())}, {}, targets={"find": find, "decision": decision})
    step = make_train_step(MODEL, STAGE, optimizer, mesh, layout, SignalLoss())
    state, metrics = step(state, frozen, put_batch(batch, mesh))
    return trainable, jax.device_get(state.trainable), jax.device_get(metrics)


@pytest.mark.slow
def test_a_mesh_gives_the_loss_and_every_gradient_of_one_device(params):
    before, alone, wanted = step_on({}, params)
    _, shared, found = step_on({"data": 2, "fsdp": 2, "tensor": 2}, params)
    for name in ("loss", "grad_norm", "retrieval", "decision"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    for path, leaf in alone.items():
        np.testing.assert_allclose(shared[path], leaf, rtol=2e-3, atol=2e-5, err_msg=path)
    for part in ("backbone", "output_projectors", "generators"):
        assert max(np.abs(alone[path] - before[path]).max() for path in alone if path.startswith(part)) > 1e-3, part
