"""Text with images: which signals are drawn, each for itself, and tokens that follow others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.generators.autoencoder import AutoencoderConfig
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.schedules import make_steps
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.unet import UNetConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.infer.media import DrawOptions, MediaPrograms, draw_options, follow, generate_media, signal_keys
from mmjax.infer.signals import continued
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import QueriesOutputConfig
from mmjax.signals import draw_media

GENERATOR = DiffusionConfig(
    UNetConfig(
        widths=(8,), blocks=1, layers=(1,), middle_layers=0, num_heads=(2,), context_width=12, groups=4, sample_size=4
    ),
    AutoencoderConfig(widths=(8, 8), blocks=1, groups=4),
    ScheduleConfig("euler_ancestral"),
)
PROJECTOR = QueriesOutputConfig(
    16, 12, 3, inner_width=8, num_heads=2, mlp_width=12, encoder_layers=1, decoder_layers=1
)
NEW = 7


def config(*signal):
    return MultimodalLMConfig(
        DecoderConfig(40, 16, 1, 2, 2, 8, 24),
        generators={"image_out": GENERATOR},
        output_projectors={"image_out": PROJECTOR},
        signal_tokens={"image_out": signal},
    )


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    shapes = MultimodalLM(config(1)).param_shapes()
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def prompts(rows=3):
    random = np.random.default_rng(4)
    tokens = random.integers(1, 40, (rows, 6)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[1, :2] = 0
    positions = (np.cumsum(segments, axis=1) - 1).clip(0).astype(np.int32)
    return Batch({"text": TextStream(tokens, positions, segments)})


def test_what_is_signalled_is_drawn_each_for_itself(params):
    plain = generate(MultimodalLM(config(1)), params, prompts(), GenerateOptions(max_new_tokens=NEW))
    # What the last row says second begins the signal; what it would say next is not what follows.
    said = int(plain.tokens[2, 1])
    model = MultimodalLM(config(said, 39))
    assert follow(model) == ((said, 39),)
    drawing, options = MediaPrograms(model), DrawOptions(4, 2.0, seed=3)
    run = lambda rows, numbers=None: generate_media(
        model, params, rows, GenerateOptions(max_new_tokens=NEW), options, None, drawing, numbers
    )
    out, made = run(prompts())
    places = [[at for at in range(NEW - 1) if row[at] == said and row[at + 1] == 39] for row in out.tokens]
    assert all(row[at + 1] == 39 for row in out.tokens for at in range(NEW - 1) if row[at] == said)
    assert [len(images) for images in made["image_out"]] == [len(found) for found in places] and places[2]
    # The same by hand: hidden states of the whole text, one signal at a time.
    whole = continued(prompts().text, out)
    hidden = jax.jit(model.forward)(params, {"text": whole})
    at = prompts().text.tokens.shape[1] + places[2][-1]
    key = signal_keys(3, [(2, len(places[2]) - 1)])
    steps = make_steps(GENERATOR.schedule, 4)
    draw = jax.jit(lambda params, states: draw_media(model, params, "image_out", states, steps, 2.0, key[None]))
    alone = draw(params, hidden[2, at : at + 2][None, None])[0, 0]
    assert alone.shape == (8, 8, 3) and alone.min() >= 0 and alone.max() <= 1
    np.testing.assert_allclose(made["image_out"][2][-1], alone, atol=1e-3)
    # In another batch, and another number of steps later, nothing else compiles but for the batch's size.
    last = jax.tree.map(lambda leaf: leaf[2:], prompts())
    _, single = run(last, [2])
    np.testing.assert_allclose(single["image_out"][0][-1], made["image_out"][2][-1], atol=1e-3)
    compiled = drawing.compilations
    for count in (1, 9):
        options = dataclasses.replace(options, num_inference_steps=count)
        _, other = run(last, [2])
    assert drawing.compilations == compiled
    assert np.abs(other["image_out"][0][-1] - single["image_out"][0][-1]).max() > 1e-3


def test_no_signal_no_image(params):
    options = GenerateOptions(max_new_tokens=2)
    plain = generate(MultimodalLM(config(1)), params, prompts(), options)
    unsaid = next(token for token in range(40) if token not in plain.tokens)
    out, made = generate_media(MultimodalLM(config(unsaid)), params, prompts(), options)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert made == {"image_out": [[], [], []]}
    short = MultimodalLM(config(*map(int, (out.tokens[0, 0], 3, 4))))
    cut, made = generate_media(short, params, prompts(), options)
    # A signal that the answer's end cuts off is none.
    assert cut.tokens[0, 1] == 3 and made["image_out"][0] == []


def test_signals_that_part_are_followed_by_nothing():
    both = MultimodalLMConfig(
        DecoderConfig(40, 16, 1, 2, 2, 8, 24),
        generators={"image_out": GENERATOR, "other_out": GENERATOR},
        output_projectors={"image_out": PROJECTOR, "other_out": PROJECTOR},
        signal_tokens={"image_out": (5, 6, 7), "other_out": (5, 8, 7)},
    )
    assert follow(MultimodalLM(both)) == ((6, 7), (8, 7))


@pytest.mark.parametrize("bad", [{"num_inference_steps": 0}, {"seed": -1}])
def test_bad_options(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DrawOptions(**bad)


def test_without_guidance_half_the_work_draws_the_same(params):
    model = MultimodalLM(config(3, 5))
    states = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 2, 16)), jnp.float32)
    steps, keys = make_steps(GENERATOR.schedule, 3), signal_keys(1, [(0, 0), (1, 0)])[:, None]
    draw = jax.jit(lambda params, scale: draw_media(model, params, "image_out", states, steps, scale, keys))
    alone, guided = draw(params, None), draw(params, 1.0)
    np.testing.assert_allclose(alone, guided, atol=1e-4)
    assert np.abs(alone - draw(params, 3.0)).max() > 1e-3


def test_a_checkpoint_says_how_it_draws():
    model, said = MultimodalLM(config(1)), {"num_inference_steps": 7, "guidance_scale": 1.5, "eos_token_id": 2}
    assert draw_options(model, {"seed": 4}, defaults=said) == DrawOptions(7, 1.5, 4)
    assert draw_options(model, {"guidance_scale": 3.0}, defaults=said) == DrawOptions(7, 3.0)
    assert draw_options(model, {}) == DrawOptions()
    assert draw_options(MultimodalLM(MultimodalLMConfig(config(1).backbone)), {}, defaults=said) is None


@pytest.mark.slow
def test_straight_lines_draw_too(params):
    straight = ScheduleConfig("flow_euler", NoiseConfig(prediction="flow"))
    options = GenerateOptions(max_new_tokens=1)
    said = int(generate(MultimodalLM(config(1)), params, prompts(), options).tokens[0, 0])
    generator = dataclasses.replace(GENERATOR, schedule=straight)
    model = MultimodalLM(dataclasses.replace(config(said), generators={"image_out": generator}))
    _, made = generate_media(model, params, prompts(), options, DrawOptions(2))
    (image,) = made["image_out"][0]
    assert image.shape == (8, 8, 3) and np.isfinite(image).all() and image.std() > 0
