"""Generation by an encoder-decoder, with media in its query, against transformers' T5 on the same embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.interop.huggingface import t5
from mmjax.interop.table import export_params
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.qformer import QFormerConfig

T5 = EncoderDecoderConfig(
    61, 24, 2, 3, 8, 40, max_positions=40, relative_buckets=8, relative_max_distance=12, logit_scale=24**-0.5
)
VISION = ViTConfig(image_size=12, patch_size=6, width=16, num_layers=1, num_heads=2, mlp_width=20)
IMAGE = 60


@pytest.fixture(scope="module")
def seeing():
    """A BLIP-2 in small: image encoder, Q-Former, T5; and transformers' T5 with the same weights."""
    width = VISION.feature_width
    queries = QFormerConfig(
        width, T5.width, num_queries=3, query_width=12, num_layers=1, num_heads=2, mlp_width=16,
        num_features=VISION.num_tokens(),
    )  # fmt: skip
    model = MultimodalLM(MultimodalLMConfig(T5, {"image": VISION}, {"image": queries}, {"image": IMAGE}))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), model.param_shapes()
    )
    config = transformers.T5Config(**{**t5.backbone_to_hf(T5), "pad_token_id": 0, "eos_token_id": 1})
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    tensors = dict(export_params(t5.rows(T5), {"backbone": params["backbone"]}))
    missing, extra = theirs.load_state_dict(
        {name: torch.tensor(np.ascontiguousarray(array)) for name, array in tensors.items()}, strict=False
    )
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert not extra and set(missing) <= tied
    return model, params, theirs, Programs(model)


def request(seed=0):
    """Two rows: an image, then 5 or 2 words, padded on the right."""
    rng = np.random.default_rng(seed)
    tokens, index = rng.integers(2, 60, (2, 8)).astype(np.int32), np.full((2, 8), -1, np.int32)
    tokens[:, :3], index[:, :3] = IMAGE, np.arange(3)
    valid = np.ones((2, 8), np.int32)
    valid[1, 5:] = 0
    positions = np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8))
    media = {"image": Media(rng.normal(size=(2, 1, 12, 12, 3)).astype(np.float32), np.ones((2, 1), np.int32))}
    return Batch({"query": TextStream(tokens, positions, valid, media_index=index)}, media)


def theirs_of(seeing, batch, **options):
    """What transformers generates from the query's embeddings, media in place, without the start token."""
    model, params, theirs, _ = seeing
    embed = jax.jit(lambda p, b: model.embed(p, b.texts["query"], model.encode_media(p, b.media)))
    embeddings = torch.tensor(np.array(embed(params, batch)))
    mask = torch.tensor(batch.texts["query"].segment_ids)
    out = theirs.generate(
        inputs_embeds=embeddings, attention_mask=mask, decoder_start_token_id=0, do_sample=False, **options
    )
    return out[:, 1:].numpy()


@pytest.mark.slow
def test_media_in_the_query_and_stop_ids_equal_transformers(seeing):
    model, params, _, programs = seeing
    batch = request()
    expected = theirs_of(seeing, batch, max_new_tokens=12, eos_token_id=None)
    free = generate(model, params, batch, GenerateOptions(max_new_tokens=12), programs)
    np.testing.assert_array_equal(free.tokens, expected)
    assert free.tokens[0].tolist() != free.tokens[1].tolist()
    stop = int(expected[0, 3])
    expected = theirs_of(seeing, batch, max_new_tokens=12, eos_token_id=stop)
    stopped = generate(model, params, batch, GenerateOptions(max_new_tokens=12, stop_ids=(stop,)), programs)
    np.testing.assert_array_equal(stopped.tokens[:, : expected.shape[1]], expected)
    assert stopped.lengths[0] == expected[0].tolist().index(stop) + 1
    other = batch.replace(media={"image": batch.media["image"].replace(values=-batch.media["image"].values)})
    assert (generate(model, params, other, GenerateOptions(max_new_tokens=12), programs).tokens != free.tokens).any()
    # Another request of the same bucket compiles nothing new.
    compiled = programs.compilations.copy()
    generate(model, params, request(seed=1), GenerateOptions(max_new_tokens=11), programs)
    assert programs.compilations == compiled


@pytest.mark.slow
def test_stacked_parameters_streams_and_draws(seeing):
    model, params, _, programs = seeing
    batch, options = request(), GenerateOptions(max_new_tokens=12, do_sample=True, seed=5)
    drawn = generate(model, params, batch, options, programs).tokens
    scanned = Programs(model, unstack=False)
    np.testing.assert_array_equal(generate(model, params, batch, options, scanned).tokens, drawn)
    assert (drawn != generate(model, params, batch, GenerateOptions(max_new_tokens=12), programs).tokens).any()
    heard = []
    generate(model, params, batch, options, programs, lambda tokens, counts: heard.append(tokens), stream_every=5)
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), drawn)


@pytest.mark.slow
def test_an_answer_that_has_begun_goes_on_as_it_would_have(seeing):
    model, params, _, programs = seeing
    batch = request()
    whole = generate(model, params, batch, GenerateOptions(max_new_tokens=12), programs).tokens
    begun = np.concatenate([np.zeros((2, 1), np.int32), whole[:, :4]], axis=1)
    text = TextStream(begun, np.broadcast_to(np.arange(5, dtype=np.int32), (2, 5)), np.ones_like(begun))
    batch = batch.replace(texts={**batch.texts, "decoder": text})
    rest = generate(model, params, batch, GenerateOptions(max_new_tokens=8), programs).tokens
    np.testing.assert_array_equal(rest, whole[:, 4:])


def test_requests_that_cannot_work_are_refused(seeing):
    model, params, _, _ = seeing
    batch, options = request(), GenerateOptions(max_new_tokens=8)
    query = batch.texts["query"]
    one = jax.tree.map(lambda leaf: leaf[:1], query.replace(media_index=None))
    empty = query.replace(segment_ids=np.zeros((2, 8), np.int32))
    for texts, wanted, words in (
        ({"text": query}, options, '"query"'),
        ({"query": empty}, options, "empty prompt"),
        ({"query": query}, dataclasses.replace(options, max_new_tokens=40), "start token"),
        ({"query": query, "decoder": one}, options, "as many rows"),
    ):
        programs = Programs(model)
        with pytest.raises(ValueError, match=words):
            generate(model, params, batch.replace(texts=texts), wanted, programs)
        assert not programs.compilations
