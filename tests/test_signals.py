"""Signals in a text and the masks drawn at them: places, states, the loss, gradients and generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.contracts import Batch, Condition, Media, TextStream
from mmjax.encoders.sam import SamEncoder, SamEncoderConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.mask_decoder import MaskDecoder, MaskDecoderConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.infer.masks import Drawing, generate_masks
from mmjax.infer.signals import continued
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.output_projectors import MLPOutputConfig
from mmjax.paths import flatten, unflatten
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.recipes.assemble import TrainConfig
from mmjax.recipes.train import stage_of
from mmjax.signals import alike, draw_masks, find_signals, generator_features, signal_states
from mmjax.train.losses import next_token_loss
from mmjax.train.signal_loss import SignalLoss, loss_of
from mmjax.train.stage import adapt, split

SEG = 61
CONFIG = MultimodalLMConfig(
    DecoderConfig(64, 32, 2, 4, 2, 8, 48, lora=LoRAConfig(2, 4.0, ("q", "v"))),
    {"image": ViTConfig(16, 8, 16, 1, 2, 24, feature_strategy="patches")},
    {"image": LinearProjectorConfig(16, 32)},
    {"image": 62},
    generators={"mask": MaskDecoderConfig(16, 32, 4, 1, 2, 24, mask_width=8, iou_width=16)},
    output_projectors={"mask": MLPOutputConfig(32, 24, 16)},
    signal_tokens={"mask": (SEG,)},
    generator_encoders={"mask": SamEncoderConfig(32, 8, 16, 1, 2, 24, 16, 3, (0,))},
    signal_states="before",
)
BATCH, LENGTH, MASKS = 3, 20, 2


@pytest.fixture(scope="module")
def model():
    return MultimodalLM(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), jnp.float32), model.param_shapes())


def example(seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 60, (BATCH, LENGTH)).astype(np.int32)
    tokens[0, [9, 14]] = SEG  # two, one, none
    tokens[1, 12] = SEG
    tokens[2, 18] = SEG  # in the padding
    segments = np.ones_like(tokens)
    segments[2, 17:] = 0
    index = np.full_like(tokens, -1)
    index[:, 2:6] = np.arange(4)
    tokens[:, 2:6] = SEG  # whatever stands where media are
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape).copy()
    weights = (np.arange(LENGTH) > 8) * segments.astype(np.float32)
    text = TextStream(tokens, positions, segments, loss_weights=weights, media_index=index)
    pixels = random.normal(size=(BATCH, 1, 16, 16, 3)).astype(np.float32)
    inside = np.zeros((BATCH, 24, 24), np.float32)
    inside[:, :18] = 1
    targets = {
        "images": random.normal(size=(BATCH, 32, 32, 3)).astype(np.float32),
        "masks": (random.uniform(size=(BATCH, MASKS, 24, 24)) > 0.5).astype(np.float32),
        "weights": np.array([[1, 1], [1, 0], [0, 0]], np.float32),
        "pixels": inside,
    }
    return Batch({"text": text}, {"image": Media(pixels, np.ones((BATCH, 1), np.int32))}, targets={"mask": targets})


def slow_places(ids, text, count):
    out = []
    for tokens, segments, index in zip(text.tokens, text.segment_ids, text.media_index, strict=True):
        found = []
        for start in range(len(tokens)):
            run = slice(start, start + len(ids))
            if (
                tuple(tokens[run]) == ids
                and (index[run] < 0).all()
                and segments[start] > 0
                and len(set(segments[run])) == 1
            ):
                found.append(start)
        out.append(found[:count])
    return out


@pytest.mark.parametrize(("ids", "count"), [((3,), 4), ((3, 5), 2), ((3, 5, 4), 9)])
def test_places_of_signals(ids, count):
    random = np.random.default_rng(0)
    tokens = random.choice([3, 4, 5], (6, 40), p=[0.4, 0.2, 0.4]).astype(np.int32)
    tokens[:, 5:8], tokens[:, 37:] = (3, 5, 4), (3, 5, 4)
    segments = np.repeat(np.array([[1, 1, 2, 2, 0]]), 8, axis=1).repeat(6, axis=0).astype(np.int32)
    index = np.where(random.uniform(size=tokens.shape) < 0.1, 0, -1).astype(np.int32)
    text = TextStream(tokens, tokens, segments, media_index=index)
    found, real = map(np.asarray, find_signals(ids, text, count))
    assert found.shape == (6, count)
    for row, wanted in enumerate(slow_places(ids, text, count)):
        assert found[row][real[row]].tolist() == wanted


def test_masks_are_those_of_the_parts_by_hand(model, params):
    batch = example()

    @jax.jit
    def run(params, batch):
        hidden = model.forward(params, batch.texts, model.encode_media(params, batch.media))
        states, real = signal_states(model, "mask", batch.text, hidden, MASKS)
        features = generator_features(model, params, "mask", batch.targets["mask"]["images"])
        return hidden, real, draw_masks(model, params, "mask", states, features)

    hidden, real, drawn = run(params, batch)
    np.testing.assert_array_equal(real, [[True, True], [True, False], [False, False]])
    sam = SamEncoder(CONFIG.generator_encoders["mask"])
    decode = jax.jit(MaskDecoder(CONFIG.generators["mask"]).apply, static_argnames="multimask")
    maps = jax.jit(lambda p, x: sam.apply({"params": p}, x, method="run"))(
        params["generator_encoders"]["mask"], batch.targets["mask"]["images"]
    )["last_hidden_state"]
    fc1, fc2 = (params["output_projectors"]["mask"][name] for name in ("fc1", "fc2"))
    # The hidden state that says the signal stands one place before it.
    for row, number, place in [(0, 0, 8), (0, 1, 13), (1, 0, 11)]:
        prompt = jax.nn.relu(hidden[row, place] @ fc1["kernel"] + fc1["bias"]) @ fc2["kernel"] + fc2["bias"]
        variables = {"params": params["generators"]["mask"]}
        one = decode(variables, maps[row][None], embeddings=prompt[None, None], multimask=False)
        np.testing.assert_allclose(drawn.logits[row, number], one.logits[0, 0, 0], atol=1e-4)
        np.testing.assert_allclose(drawn.iou[row, number], one.iou[0, 0, 0], atol=1e-4)
    at = dataclasses.replace(model, config=dataclasses.replace(CONFIG, signal_states="at"))
    states, _ = signal_states(at, "mask", batch.text, hidden, 1)
    np.testing.assert_array_equal(states[0, 0, 0], hidden[0, 9])


def test_loss_is_its_closed_form_and_reaches_the_adapters(model, params):
    batch = example()

    @jax.jit
    def by_hand(params):
        hidden = model.forward(params, batch.texts, model.encode_media(params, batch.media))
        states, _ = signal_states(model, "mask", batch.text, hidden, MASKS)
        features = generator_features(model, params, "mask", batch.targets["mask"]["images"])
        text, aux = next_token_loss(model, params, batch)
        return text / aux["weight"], draw_masks(model, params, "mask", states, features).logits

    text, logits = by_hand(params)
    target = batch.targets["mask"]
    bce, dice = [], []
    for row, number in [(0, 0), (0, 1), (1, 0)]:
        x = torch.tensor(np.array(logits[row, number]))[None, None]
        x = F.interpolate(x, (24, 24), mode="bilinear", align_corners=False)[0, 0, :18]
        y = torch.tensor(target["masks"][row, number, :18])
        bce.append(F.binary_cross_entropy_with_logits(x, y).item())
        inside = x.sigmoid()
        dice.append(1 - (2 * (inside / 1000 * y).sum() + 1e-6) / ((inside / 1000).sum() + (y / 1000).sum() + 1e-6))
    wanted = 0.5 * float(text) + 2 * np.mean(bce) + 0.25 * float(np.mean(dice))

    def whole(params, weights):
        total, aux = SignalLoss(*weights)(model, params, batch)
        return total / aux["weight"], aux

    run = jax.jit(jax.value_and_grad(whole, has_aux=True))
    (value, aux), grads = run(params, jnp.array([0.5, 2.0, 0.25]))
    assert value == pytest.approx(wanted, rel=1e-4)
    assert aux["bce"] / aux["weight"] == pytest.approx(np.mean(bce), rel=1e-4)
    # Without the text's loss only the masks move the adapters, through the decoder and the output projector.
    _, masks_only = run(params, jnp.array([0.0, 2.0, 0.5]))
    for path, grad in flatten(masks_only).items():
        assert np.isfinite(grad).all(), path
        reached = path.startswith(("output_projectors/", "generators/mask/blocks"))
        reached |= path.endswith(("lora_a", "lora_b"))
        assert not reached or np.abs(grad).max() > 0, path
    for path, grad in flatten(grads).items():
        assert not path.startswith("generator_encoders/") or not np.asarray(grad).any(), path
    assert run(params, jnp.array([1.0, 0.0, 0.0]))[0][0] == pytest.approx(float(text), rel=1e-5)
    _, alone = jax.eval_shape(lambda p: SignalLoss()(model, p, batch.replace(targets=None)), params)
    assert "bce" not in alone


@pytest.mark.slow
def test_generation_draws_what_the_whole_text_says(model, params):
    batch = example()
    prompt = batch.replace(texts={"text": batch.text.replace(loss_weights=None)}, targets=None)
    images = batch.targets["mask"]["images"]
    options = GenerateOptions(max_new_tokens=6)
    first = generate(model, params, prompt, options)
    # Whatever the first row says first is the signal.
    said = int(first.tokens[0, 0])
    asking = MultimodalLM(dataclasses.replace(CONFIG, signal_tokens={"mask": (said,)}))
    drawing = Drawing(asking)
    out = generate_masks(asking, params, prompt, images, options, drawing)
    np.testing.assert_array_equal(out.tokens, first.tokens)
    counts = (first.tokens == said).sum(axis=1)
    assert [len(masks) for masks in out.masks] == counts.tolist() and counts[0] >= 1
    whole = continued(prompt.text, first)
    for row in np.flatnonzero(counts)[:2]:
        # Row by row, without padding between prompt and answer.
        kept = np.flatnonzero(np.asarray(whole.segment_ids)[row])
        cut = lambda leaf, row=row, kept=kept: None if leaf is None else np.asarray(leaf)[row : row + 1, kept]
        names = ("tokens", "positions", "segment_ids", "media_index")
        alone = TextStream(**{name: cut(getattr(whole, name)) for name in names})
        media = {"image": Media(batch.media["image"].values[row : row + 1])}
        start = len(kept) - first.lengths[row]
        masks, _ = drawing(params, Batch({"text": alone}, media), images[row : row + 1], int(start), int(counts[row]))
        np.testing.assert_allclose(out.masks[row], masks[0], atol=2e-4)
    with pytest.raises(ValueError, match="2 images for 3 prompts"):
        generate_masks(model, params, prompt, images[:2], options)


@pytest.mark.slow
def test_an_answer_without_a_signal_has_no_mask(model, params):
    batch = example()
    prompt = batch.replace(targets=None)
    silent = MultimodalLM(dataclasses.replace(CONFIG, signal_tokens={"mask": (5, 9, 4, 8)}))
    out = generate_masks(silent, params, prompt, batch.targets["mask"]["images"], GenerateOptions(max_new_tokens=2))
    assert [masks.shape for masks in out.masks] == [(0, 16, 16)] * BATCH


@pytest.mark.slow
def test_shapes_of_a_step_at_full_size():
    config = from_dict(TrainConfig, to_plain(load_config("lisa:7b")))
    stage = stage_of("segment", config.stages["segment"])
    model = MultimodalLM(config.model, config.dtype, config.param_dtype, config.remat)
    params = jax.eval_shape(lambda tree: adapt(model, tree, stage)[1], model.param_shapes())
    adapted = MultimodalLM(
        dataclasses.replace(config.model, backbone=dataclasses.replace(config.model.backbone, lora=stage.lora)),
        config.dtype,
        config.param_dtype,
        config.remat,
    )
    rows, length, masks = 2, 384, 3
    whole, real = (jax.ShapeDtypeStruct((rows, length), kind) for kind in (jnp.int32, jnp.float32))
    text = TextStream(whole, whole, whole, loss_weights=real, media_index=whole)
    array = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    targets = {"images": array(1024, 1024, 3), "pixels": array(256, 256)}
    targets |= {"masks": array(masks, 256, 256), "weights": array(masks)}
    batch = Batch({"text": text}, {"image": Media(array(1, 224, 224, 3))}, targets={"mask": targets})
    trainable, frozen = split(params, stage)
    assert any(path.endswith("lora_b") for path in trainable) and "generator_encoders/mask/neck_1/kernel" in frozen
    loss = loss_of(adapted, stage.loss_weights)

    def step(trainable, frozen, batch):
        return jax.grad(lambda leaves: loss(adapted, unflatten(leaves, frozen), batch)[0])(trainable)

    grads = jax.eval_shape(step, trainable, frozen, batch)
    assert {path: leaf.shape for path, leaf in grads.items()} == {path: leaf.shape for path, leaf in trainable.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal_tokens": {}}, "signal_tokens has ports"),
        ({"signal_tokens": {"mask": (64,)}}, "below 64"),
        ({"output_projectors": {"mask": MLPOutputConfig(32, 24, 8)}}, "the generator takes 16"),
        ({"generator_encoders": {}}, "its encoder gives"),
        ({"signal_states": "behind"}, "signal_states"),
        ({"generator_encoders": {"image": CONFIG.generator_encoders["mask"]}}, "generator_encoders"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_configs_and_losses_by_name(model):
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    assert loss_of(model, {"dice": 1.0}) == SignalLoss(dice=1.0)
    plain = MultimodalLM(MultimodalLMConfig(CONFIG.backbone))
    assert loss_of(plain, {}) is next_token_loss
    with pytest.raises(ConfigError, match="loss_weights"):
        loss_of(plain, {"dice": 1.0})


def test_conditions_are_made_alike():
    short = Condition(jnp.ones((1, 2, 4)), jnp.array([[True, False]]), jnp.ones((1, 4)))
    longer = Condition(2 * jnp.ones((3, 5, 4)))
    first, second = alike(short, longer)
    assert first.sequence.shape == (1, 5, 4) and second.sequence.shape == (3, 5, 4)
    np.testing.assert_array_equal(first.mask, [[True, False, False, False, False]])
    assert np.asarray(second.mask).all() and first.pooled is None
    same, other = alike(Condition(jnp.ones((1, 5, 4))), longer)
    assert same.mask is None and other.mask is None
    sketch, more = jnp.ones((1, 2, 2, 1)), {"sizes": jnp.ones((1, 2))}
    drawn = Condition(jnp.ones((1, 5, 4)), extras={"sketch": sketch, **more})
    first, second = alike(drawn, dataclasses.replace(longer, extras={"sketch": jnp.zeros((3, 2, 2, 1))}))
    assert list(first.extras) == list(second.extras) == ["sketch"] and first.extras["sketch"] is sketch
    assert alike(drawn, longer)[0].extras is None
    vectors = alike(Condition(None, pooled=jnp.ones((1, 4))), Condition(jnp.ones((1, 5, 4)), pooled=jnp.ones((1, 4))))
    assert all(part.sequence is None and part.pooled.shape == (1, 4) for part in vectors)
