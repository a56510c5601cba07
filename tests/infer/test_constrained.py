"""Images as tokens: rules against a slow second reading of them, and a model that would break them if it could."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, TextStream
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.infer.constrained import NOWHERE, advance, first_place, guided, image_rules, only_allowed, required
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.infer.image_codes import CodePrograms, WriteOptions, find_images, generate_images, text_only
from mmjax.model import MultimodalLM, MultimodalLMConfig

AUTOENCODER = VQAutoencoderConfig(
    codes=6, latent_channels=3, widths=(8, 8), blocks=1, groups=4, inner_channels=4, middle_attention=False
)
BACKBONE = DecoderConfig(30, 16, 1, 2, 2, 8, 24, max_positions=96)
BEGIN, ROW_END, END, STOP = 7, 9, 8, 2


def codes(**changes):
    plain = dict(begin=BEGIN, row_end=ROW_END, tail=(END, STOP), first=20)
    return ImageCodesConfig(AUTOENCODER, 16, (2, 3), **plain | changes)


def model_of(**changes):
    return MultimodalLM(MultimodalLMConfig(BACKBONE, codes=codes(**changes)))


def expected(config, grid, written):
    """What may come behind these tokens, read from the start: one token, "code" or "text"."""
    at = None
    for token in written:
        if at is None:
            at = 0 if token == config.begin else None
        else:
            at += 1
            at = None if at == len(plan(config, grid)) else at
    return "text" if at is None else plan(config, grid)[at]


def plan(config, grid):
    row = ["code"] * grid[1] + ([] if config.row_end is None else [config.row_end])
    return row * grid[0] + list(config.tail)


@pytest.mark.parametrize("changes", [{}, {"row_end": None, "tail": ()}, {"ids": (25, 21, 29, 22, 27, 24)}])
def test_places_are_those_of_a_slow_reading(changes):
    config, random = codes(**changes), np.random.default_rng(3)
    grids = np.array([(2, 3), (1, 1), (3, 2), (1, 4)])
    rules = image_rules(config, 30, grids)
    place, written = jnp.full(4, NOWHERE), [[] for _ in grids]
    step = jax.jit(lambda rules, place, token: advance(rules, place, token))
    allowed = jax.jit(lambda rules, place: (only_allowed(rules, place, jnp.zeros((4, 30))), required(rules, place)))
    seen = set()
    for _ in range(60):
        logits, belongs = (np.asarray(part) for part in allowed(rules, place))
        tokens = []
        for row, grid in enumerate(grids):
            wanted = expected(config, grid, written[row])
            may = set(np.flatnonzero(np.isfinite(logits[row])).tolist())
            seen.add(wanted)
            if wanted in ("text", "code"):
                assert belongs[row] == NOWHERE
                assert may == {token for token in range(30) if (token in config.tokens()) == (wanted == "code")}
                token = BEGIN if wanted == "text" and random.random() < 0.4 else int(random.choice(sorted(may)))
            else:
                assert belongs[row] == wanted
                token = wanted
            tokens.append(token)
            written[row].append(token)
        place = step(rules, place, jnp.asarray(tokens))
    assert seen == {"text", "code", *plan(config, (1, 1))}
    # A prompt that stops anywhere goes on from there.
    start = jax.jit(first_place)
    for cut in (1, 2, 5, 9, 14, 30):
        tokens, valid = np.zeros((2, 4, 34), np.int32)
        tokens[:, 2 : 2 + cut], valid[:, 2 : 2 + cut] = [row[:cut] for row in written], 1
        found = np.asarray(start(rules, TextStream(tokens, valid, valid)))
        for row, grid in enumerate(grids):
            wanted = expected(config, grid, written[row][:cut])
            if isinstance(wanted, str):
                assert (found[row] >= 0) == (wanted == "code")
            if found[row] >= 0:
                assert plan(config, grid)[found[row]] == wanted


def test_guidance_is_its_formula():
    rules = image_rules(codes(), 30, guidance=3.5)
    asked, without = np.random.default_rng(0).normal(size=(2, 3, 30)).astype(np.float32)
    mixed = guided(rules, jnp.array([0, NOWHERE, 4]), jnp.concatenate([asked, without]))
    wanted = without + 3.5 * (asked - without)
    wanted[1] = asked[1]
    np.testing.assert_allclose(mixed, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def weights():
    """Params under which a model left alone says mostly codes, and seldom what belongs to an image."""
    model, random = model_of(), np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.4, leaf.shape), jnp.float32), model.param_shapes()
    )
    return model, params


def prompts(*rows):
    length = max(map(len, rows))
    tokens = np.array([[0] * (length - len(row)) + list(row) for row in rows], np.int32)
    segments = (tokens > 0).astype(np.int32)
    return Batch({"text": TextStream(tokens, (np.cumsum(segments, 1) - 1).clip(0).astype(np.int32), segments)})


def check_rules(config, grids, prompt, tokens):
    for row, said in enumerate(tokens):
        before = [token for token in prompt.text.tokens[row].tolist() if token]
        for number, token in enumerate(said.tolist()):
            wanted = expected(config, grids[row], before + said.tolist()[:number])
            if isinstance(wanted, str):
                assert (token in config.tokens()) == (wanted == "code"), (row, number)
            else:
                assert token == wanted, (row, number)


def test_a_model_that_would_break_the_rules_keeps_them(weights):
    model, params = weights
    config, programs = model.config.codes, Programs(model)
    prompt = prompts((3, 4, 5, BEGIN), (3, 6), (5, BEGIN, 22, 23))
    options = GenerateOptions(max_new_tokens=24, do_sample=True, temperature=2.0, seed=5)
    free = generate(model, params, prompt, options, programs)
    with pytest.raises(AssertionError):
        check_rules(config, [(2, 3)] * 3, prompt, free.tokens)
    grids = np.array([(2, 3), (1, 2), (3, 2)])
    for seed in range(3):
        rules = image_rules(config, 30, grids)
        chosen = dataclasses.replace(options, images=rules, seed=seed)
        held = generate(model, params, prompt, chosen, programs)
        check_rules(config, grids, prompt, held.tokens)
    # Grids are data: others compile nothing.
    compiled = dict(programs.compilations)
    generate(model, params, prompt, dataclasses.replace(chosen, images=image_rules(config, 30, grids + 1)), programs)
    assert dict(programs.compilations) == compiled


def test_images_are_found_and_decoded(weights):
    model, params = weights
    prompt = prompts((3, 4, 5, BEGIN), (3, 6, 4, 4), (5, BEGIN, 22, 23))
    options = GenerateOptions(max_new_tokens=12, stop_ids=(STOP,))
    drawing = CodePrograms(model)
    out, made = generate_images(model, params, prompt, options, WriteOptions("interleaved"), codes=drawing)
    assert [len(row) for row in made.codes][::2] == [1, 1] and out.lengths[0] == 2 * 4 + 2 and out.lengths[2] == 8
    np.testing.assert_array_equal(made.codes[0][0], out.tokens[0, [0, 1, 2, 4, 5, 6]].reshape(2, 3) - 20)
    np.testing.assert_array_equal(made.codes[2][0].reshape(-1)[:2], [2, 3])
    image = model.image_codes.apply({"params": params["codes"]}, made.codes[2][0][None], method="decode")[0]
    assert made.images[2][0].shape == (4, 6, 3)
    np.testing.assert_allclose(made.images[2][0], np.clip(np.asarray(image) / 2 + 0.5, 0, 1), atol=1e-5)
    assert (text_only(model, out).lengths == [4, out.lengths[1], 4]).all()
    # An image that the answer's end cuts off is none.
    assert find_images(model.config.codes, (2, 3), out.tokens[0, :6], 0) == []
    # Text alone begins none.
    out, made = generate_images(model, params, prompt, options, WriteOptions("text"))
    assert made.codes == [[], [], []] and not np.isin(out.tokens, model.config.codes.tokens()).any()


def test_guided_rows_write_what_both_halves_say(weights):
    model, params = weights
    prompt, other = prompts((3, 4, 5, BEGIN), (3, 6, 4, BEGIN)), prompts((9, 11, BEGIN), (12, BEGIN))
    options = GenerateOptions(max_new_tokens=10)
    write = WriteOptions("interleaved", 2.5, None, other.text)
    out, made = generate_images(model, params, prompt, options, write)
    # The same by hand, a token at a time, without a cache.
    said = np.zeros((2, 0), np.int32)
    logits = jax.jit(lambda text: model.logits(params, model.forward(params, {"text": text}))[:, -1])
    for number in range(10):
        both = []
        for batch in (prompt, other):
            rows = [row[row > 0].tolist() + extra for row, extra in zip(batch.text.tokens, said.tolist(), strict=True)]
            rows = [[0] * (16 - len(row)) + row for row in rows]
            both.append(np.asarray(logits(prompts(*rows).text)))
        mixed = both[1] + 2.5 * (both[0] - both[1])
        wanted = plan(model.config.codes, (2, 3))[number]
        token = 20 + mixed[:, 20:26].argmax(1) if wanted == "code" else np.full(2, wanted)
        said = np.concatenate([said, token[:, None].astype(np.int32)], axis=1)
    np.testing.assert_array_equal(out.tokens, said)
    plain, _ = generate_images(model, params, prompt, options, WriteOptions("interleaved"))
    assert (plain.tokens != out.tokens).any()


def test_what_cannot_work_is_named(weights):
    model, params = weights
    with pytest.raises(ValueError, match="both at least 1"):
        image_rules(codes(), 30, (0, 3))
    with pytest.raises(ValueError, match="guidance_scale must be a number from 1"):
        image_rules(codes(), 30, guidance=0.5)
    with pytest.raises(ValueError, match="two halves, there are 3"):
        rules = image_rules(codes(), 30, guidance=2.0)
        generate(model, params, prompts((3,), (4,), (5,)), GenerateOptions(max_new_tokens=2, images=rules))
    with pytest.raises(ValueError, match=r"wanted \(height, width\), or \[1, 2\], one a row"):
        write = WriteOptions("interleaved", grid=[(1, 2), (2, 1)])
        generate_images(model, params, prompts((3,)), GenerateOptions(max_new_tokens=2), write)
    for changes, message in (
        ({"begin": 22}, "token 22 is a code"),
        ({"first": 28}, "token 30 is outside the vocabulary of 30"),
        ({"own": True}, "codes.first is 20; its own codes begin behind the vocabulary of 30"),
        ({"ids": (1, 3)}, "2 different ids of 6 codes"),
    ):
        with pytest.raises(ConfigError, match=message):
            model_of(**changes)
