"""The encoder-decoder's options: both forms of blocks, keys made once, caches, padding, packing, meshes, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh, put_batch
from mmjax.distributed.rules import shardings
from mmjax.infer.cache import empty_cache, unstack
from mmjax.model import MultimodalLM, MultimodalLMConfig

T5 = EncoderDecoderConfig(32, 24, 3, 4, 6, 40, encoder_layers=2, relative_buckets=8, relative_max_distance=12)
BART = EncoderDecoderConfig(
    32, 24, 2, 4, 6, 40, encoder_heads=2, max_positions=30, norm="layer", post_norm=True, activation="gelu",
    gated=False, use_bias=True, position="learned", position_offset=2, attention_scale=None, embed_norm=True,
    head_bias=True,
)  # fmt: skip
CONFIGS = {"relative, pre-norm": T5, "learned, post-norm": BART}


@pytest.fixture(scope="module", params=list(CONFIGS))
def built(request):
    model = MultimodalLM(MultimodalLMConfig(CONFIGS[request.param]))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
                               model.param_shapes())  # fmt: skip


def stream(rows, left=False):
    """TextStream of token lists, padded on one side."""
    length = max(map(len, rows))
    tokens, valid = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        at = slice(length - len(ids), None) if left else slice(len(ids))
        tokens[row, at], valid[row, at] = ids, 1
    return TextStream(tokens, np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32), valid)


def words(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 32, length).tolist() for length in lengths]


QUERIES, ANSWERS = words(9, 3, 6), words(7, 7, 7, seed=1)


def logits(model, params, queries, answers):
    return jax.jit(lambda params, batch: model(params, batch).logits)(
        params, Batch({"query": queries, "decoder": answers})
    )


@pytest.mark.slow
def test_both_forms_of_blocks_and_both_kinds_of_memory_agree(built):
    model, params = built
    answers, query = stream(ANSWERS), stream(QUERIES)
    expected = logits(model, params, query, answers)
    assert expected.shape == (3, 7, 32) and expected.dtype == jnp.float32
    np.testing.assert_allclose(logits(model, unstack(params), query, answers), expected, atol=1e-5)
    mask = jnp.tril(jnp.ones((3, 7, 7), bool))

    @jax.jit
    def with_keys(params):
        keys = model.cross_keys(params, model.read(params, query))
        embeddings = model.embed(params, answers)
        seen = jnp.asarray(query.segment_ids) > 0
        return model.logits(params, model.step(params, embeddings, answers.positions, mask, memory=(keys, seen))[0])

    np.testing.assert_allclose(with_keys(params), expected, atol=1e-5)
    np.testing.assert_allclose(with_keys(unstack(params)), expected, atol=1e-5)


@pytest.mark.slow
def test_a_cache_gives_what_whole_answers_give(built):
    model, params = built
    query, answers = stream(QUERIES), stream(ANSWERS)
    expected = logits(model, params, query, answers)

    def go_on(params, cache, at, text, mask):
        memory = model.cross_keys(params, model.read(params, query)), jnp.asarray(query.segment_ids) > 0
        embeddings = model.embed(params, text)
        hidden, cache = model.step(params, embeddings, text.positions, mask, cache, at, memory)
        return model.logits(params, hidden), cache

    go_on = jax.jit(go_on)
    for params_of in (params, unstack(params)):
        # The first three tokens stand in slots 1 to 3 behind one of padding, the others one by one behind slot 4,
        # which stays empty.
        cache = empty_cache(model.config.backbone, 3, 11, stacked=params_of is params)
        first = stream([row[:3] for row in ANSWERS])
        pad = lambda a: np.pad(a, ((0, 0), (1, 1)))
        first = TextStream(pad(first.tokens), pad(first.positions), pad(first.segment_ids))
        valid = first.segment_ids > 0
        mask = np.tril(np.ones((5, 5), bool))[None] & valid[:, None] & valid[:, :, None]
        out, cache = go_on(params_of, cache, 0, first, mask)
        np.testing.assert_allclose(out[:, 1:4], expected[:, :3], atol=1e-5)
        seen = np.concatenate([valid, np.zeros((3, 6), bool)], axis=1)
        for step in range(3, 7):
            slot = step + 2
            seen[:, slot] = True
            token = np.array([[row[step]] for row in ANSWERS], np.int32)
            text = TextStream(token, np.full((3, 1), step, np.int32), np.ones_like(token))
            out, cache = go_on(params_of, cache, slot, text, seen[:, None].copy())
            np.testing.assert_allclose(out[:, 0], expected[:, step], atol=1e-5)


def test_padding_and_packing_change_nothing(built):
    model, params = built
    expected = logits(model, params, stream(QUERIES), stream(ANSWERS))
    left = logits(model, params, stream(QUERIES, left=True), stream(ANSWERS, left=True))
    np.testing.assert_allclose(left, expected, atol=1e-5)

    def packed(rows):
        parts = [stream([row]) for row in rows]
        segments = [np.full((1, len(row)), number) for number, row in enumerate(rows, 1)]
        tokens = np.concatenate([part.tokens for part in parts], axis=1)
        positions = np.concatenate([part.positions for part in parts], axis=1)
        return TextStream(tokens, positions, np.concatenate(segments, axis=1).astype(np.int32))

    together = logits(model, params, packed(QUERIES), packed(ANSWERS))
    np.testing.assert_allclose(together.reshape(3, 7, 32), expected, atol=1e-5)


def test_later_answers_are_not_seen_and_all_of_the_query_is(built):
    model, params = built
    query, answers = stream(QUERIES), stream(ANSWERS)
    expected = logits(model, params, query, answers)
    changed = answers.replace(tokens=answers.tokens.copy())
    changed.tokens[:, 4] = (changed.tokens[:, 4] + 1) % 32
    later = logits(model, params, query, changed)
    np.testing.assert_array_equal(later[:, :4], expected[:, :4])
    assert np.abs(later[:, 4:] - expected[:, 4:]).max() > 1e-3
    query.tokens[0, 8] = (query.tokens[0, 8] + 1) % 32
    other = logits(model, params, query, answers)
    assert np.abs(other[0, 0] - expected[0, 0]).max() > 1e-4
    np.testing.assert_array_equal(other[1:], expected[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "built", ["relative, pre-norm", pytest.param("learned, post-norm", marks=pytest.mark.slow)], indirect=True
)
def test_remat_and_a_mesh_change_no_number_and_no_gradient(built):
    model, params = built
    batch = Batch({"query": stream(words(*[5, 9] * 4)), "decoder": stream(words(*[6] * 8, seed=1))})

    def value_and_grad(model):
        def loss(params, batch):
            out = model(params, batch).logits
            return jnp.mean(jax.nn.logsumexp(out, -1) - out[..., 0])

        return jax.jit(jax.value_and_grad(loss))

    def same(found, expected):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found[1], expected[1])

    expected = value_and_grad(model)(params, batch)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected[1]))
    same(value_and_grad(dataclasses.replace(model, remat="full"))(params, batch), expected)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(model.param_axes(), mesh))
        same(value_and_grad(model)(placed, put_batch(batch, mesh)), expected)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(built):
    model, params = built
    query, answers = stream(QUERIES), stream(ANSWERS)
    full = logits(model, params, query, answers)
    low = logits(dataclasses.replace(model, dtype="bfloat16"), params, query, answers)
    assert np.abs(full - low).max() < 0.05 * max(1.0, float(np.abs(full).max()))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_heads": 0}, "num_heads"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"encoder_heads": 5}, "encoder_heads 5"),
        ({"start_token": 32}, "start_token 32"),
        ({"relative_buckets": 2}, "relative_buckets"),
        ({"relative_buckets": 16}, "relative_max_distance 12"),
        ({"position": "rotary"}, "position"),
        ({"activation": "gleu"}, "gelu"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"norm": "batch"}, "norm"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(T5, **changes)


def test_a_decoder_without_a_query_is_refused():
    module = EncoderDecoder(T5)
    x = jnp.zeros((1, 2, 24))
    with pytest.raises(ValueError, match="memory"):
        module.init(jax.random.key(0), x, jnp.zeros((1, 2), int), jnp.ones((1, 2, 2), bool))
