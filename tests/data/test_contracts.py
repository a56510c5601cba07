"""The contracts hold what eight awkward systems need: each system's data flow, shape by shape, with thin stand-ins.

Nothing is computed: `jax.eval_shape` runs the flow on shapes. What is checked is that the dataclasses carry every
array that the published system passes between its parts, through jit, with static shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.contracts import Batch, Condition, Media, TextStream

D = 24  # LLM width
V = 50


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def ints(*shape):
    return array(*shape, dtype=jnp.int32)


def stream(batch, length, **fields):
    return TextStream(
        tokens=ints(batch, length), positions=ints(batch, length), segment_ids=ints(batch, length), **fields
    )


def dense(x, width):
    return x @ jnp.ones((x.shape[-1], width))


def embed(text, media=None, owner=None):
    table = jnp.ones((V, D))
    tokens = table[text.tokens]
    if media is None:
        return tokens
    rows = jnp.concatenate([item.values for item in media.values()], axis=1)
    rows = rows if owner is None else rows[owner]
    placed = jnp.take_along_axis(rows, jnp.maximum(text.media_index, 0)[..., None], axis=1)
    return jnp.where(text.media_index[..., None] < 0, tokens, placed)


def pixels_to_features(media, patch=8, width=12):
    b, i, h, w, c = media.values.shape
    n = (h // patch) * (w // patch)
    values = dense(media.values.reshape(b, i * n, patch * patch * c), width)
    segments = jnp.repeat(media.segment_ids, n, axis=1)
    return media.replace(values=values, segment_ids=segments, stage="encoded")


def test_blip2_t5_has_two_streams_and_fixed_queries():
    batch = Batch(
        texts={
            "query": stream(3, 7, media_index=ints(3, 7)),
            "decoder": stream(3, 5, loss_weights=array(3, 5)),
        },
        media={"image": Media(array(3, 1, 32, 32, 3), ints(3, 1))},
    )

    def run(batch):
        features = pixels_to_features(batch.media["image"])
        queries = jnp.ones((3, 4, 12)) + features.values.mean(1, keepdims=True)
        media = {"image": Media(dense(queries, D), jnp.ones((3, 4), int), stage="projected")}
        encoded = embed(batch.texts["query"], media)
        decoded = embed(batch.texts["decoder"]) + encoded.mean(1, keepdims=True)
        return dense(decoded, V)

    assert jax.eval_shape(run, batch).shape == (3, 5, V)


def test_instructblip_projector_reads_text():
    media = Media(array(2, 1, 16, 16, 3), ints(2, 1), text=stream(2, 6))

    def run(media):
        features = pixels_to_features(media)
        assert features.text is not None, "the question has to survive the encoder"
        question = embed(features.text).mean(1, keepdims=True)
        queries = jnp.ones((2, 4, D)) + question + dense(features.values, D).mean(1, keepdims=True)
        return features.replace(values=queries, segment_ids=jnp.ones((2, 4), int), stage="projected")

    out = jax.eval_shape(run, media)
    assert out.values.shape == (2, 4, D) and out.stage == "projected"


def test_idefics_tokens_choose_their_images_inside_the_backbone():
    text = stream(2, 9, media_attention=array(2, 9, 3, dtype=jnp.bool_))
    batch = Batch({"text": text}, {"image": Media(array(2, 3, 16, 16, 3), ints(2, 3))})

    def run(batch):
        features = pixels_to_features(batch.media["image"])
        resampled = dense(features.values.reshape(2, 3, 4, 12), D)
        x = embed(batch.text)
        scores = jnp.einsum("btd,bind->btin", x, resampled)
        seen = batch.text.media_attention[..., None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9).reshape(2, 9, -1)).reshape(2, 9, 3, 4)
        gate = jnp.tanh(jnp.zeros(()))
        return x + gate * jnp.einsum("btin,bind->btd", weights, resampled)

    assert jax.eval_shape(run, batch).shape == (2, 9, D)


def test_qwen2_vl_packs_images_of_native_resolution():
    # Two images of 4 x 4 and 2 x 6 patches packed in a row of 32, merged 2 x 2.
    media = Media(array(1, 32, 3 * 2 * 4 * 4), ints(1, 32), grid=ints(1, 2, 3))
    text = TextStream(ints(1, 20), ints(1, 20, 3), ints(1, 20), media_index=ints(1, 20))

    def run(media, text):
        x = dense(media.values, 12)
        same = media.segment_ids[:, :, None] == media.segment_ids[:, None, :]
        x = jnp.einsum("bst,btd->bsd", jax.nn.softmax(jnp.where(same, 0.0, -1e9)), x)
        merged = dense(x.reshape(1, 8, 4 * 12), D)
        media = media.replace(values=merged, segment_ids=media.segment_ids[:, ::4], stage="projected")
        angles = text.positions[..., None] * jnp.ones(4)
        return embed(text, {"image": media}) + jnp.cos(angles).mean((-1, -2))[..., None], media

    hidden, media = jax.eval_shape(run, media, text)
    assert hidden.shape == (1, 20, D) and media.segment_ids.shape == (1, 8) and media.grid.shape == (1, 2, 3)


def test_llava_next_unpads_by_original_size_with_static_shapes():
    # Base view and four tiles of 2 x 2 features; which of them count depends on the original size: the plan
    # places only those, so nothing dynamic is left for the model.
    media = Media(array(2, 5, 16, 16, 3), ints(2, 5), grid=ints(2, 1, 3), original_size=ints(2, 1, 2))
    text = stream(2, 40, media_index=ints(2, 40))

    def run(media, text):
        features = pixels_to_features(media)
        newline = jnp.ones((2, 1, D))
        rows = jnp.concatenate([dense(features.values, D), newline], axis=1)
        projected = features.replace(values=rows, segment_ids=None, stage="projected")
        assert projected.original_size is not None
        return embed(text, {"image": projected})

    assert jax.eval_shape(run, media, text).shape == (2, 40, D)


def test_fuyu_has_no_encoder():
    media = Media(array(2, 12, 8 * 8 * 3), ints(2, 12), grid=ints(2, 1, 3), stage="encoded")
    text = stream(2, 30, media_index=ints(2, 30))
    run = lambda media, text: embed(
        text, {"image": media.replace(values=dense(media.values, D), stage="projected")}
    )
    assert jax.eval_shape(run, media, text).shape == (2, 30, D)


def test_cogvlm_routes_by_modality():
    media = Media(array(2, 10, D), ints(2, 10), stage="projected")
    text = stream(2, 16, media_index=ints(2, 16))

    def run(media, text):
        x = embed(text, {"image": media})
        visual = (text.media_index >= 0)[..., None]
        return jnp.where(visual, dense(x, 3 * D), dense(x, 3 * D))

    assert jax.eval_shape(run, media, text).shape == (2, 16, 3 * D)


def test_nextgpt_three_ports_in_three_generators_out():
    ports = ("image", "video", "audio")
    batch = Batch(
        texts={"text": stream(2, 20, media_index=ints(2, 20), loss_weights=array(2, 20))},
        media={port: Media(array(2, 1, 16, 16, 3), ints(2, 1)) for port in ports},
        media_owner=ints(2),
        targets={port: {"latents": array(2, 4, 4, 4), "caption": array(2, 7, 16)} for port in ports},
    )
    signals = {"image": 4, "video": 24, "audio": 8}

    def run(batch):
        media = {}
        for port, item in batch.media.items():
            features = pixels_to_features(item)
            media[port] = features.replace(values=dense(features.values, D), stage="projected")
        hidden = embed(batch.text, media, batch.media_owner)
        losses = {}
        for port, count in signals.items():
            at = jnp.nonzero(batch.text.tokens.reshape(-1) == V - 1, size=2 * count, fill_value=0)[0]
            gathered = hidden.reshape(-1, D)[at].reshape(2, count, D)
            condition = Condition(
                dense(gathered, 16)[:, :7], jnp.ones((2, min(count, 7)), bool), pooled=gathered.mean(1)
            )
            latents = batch.targets[port]["latents"]
            predicted = latents + condition.sequence.mean((1, 2))[:, None, None, None]
            losses[port] = jnp.mean((predicted - latents) ** 2)
        return losses

    losses = jax.eval_shape(run, batch)
    assert set(losses) == set(ports) and all(loss.shape == () for loss in losses.values())


def test_contracts_cross_jit_and_keep_their_static_stage():
    media = Media(np.ones((1, 2, 3), np.float32), stage="encoded")
    seen = []

    @jax.jit
    def run(media):
        seen.append(media.stage)
        return media.replace(stage="projected")

    assert run(media).stage == "projected"
    run(media)
    assert seen == ["encoded"]
    with pytest.raises(AttributeError):
        media.stage = "raw"
    assert jax.tree.leaves(TextStream(1, 2, 3)) == [1, 2, 3]
