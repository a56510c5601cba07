"""What is signalled and looked up: galleries, the best of them, and who decides between drawing and looking up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.autoencoder import AutoencoderConfig
from mmjax.generators.decision import DecisionConfig
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.retrieval import RetrievalConfig
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.unet import UNetConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.infer.media import DrawOptions, MediaPrograms, generate_media
from mmjax.infer.retrieve import Gallery, make_gallery, rank, rivals
from mmjax.infer.signals import answers_only, continued
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import LinearOutputConfig
from mmjax.signals import decision_logits, signal_states

DRAWN = DiffusionConfig(
    UNetConfig(widths=(8, 8), blocks=1, layers=(1, 0), num_heads=(2, 2), context_width=12, groups=4, sample_size=4),
    AutoencoderConfig(widths=(8, 8), blocks=1, groups=4),
    ScheduleConfig("ddim"),
)
NEW = 7
TEXT = GenerateOptions(max_new_tokens=NEW)


def config(said, **left_out):
    """All three generators at one signal of one token."""
    generators = {"image_out": DRAWN, "find": RetrievalConfig(6, 5, False), "decision": DecisionConfig(4)}
    widths = {"image_out": 12, "find": 5, "decision": 4}
    ports = [port for port in generators if port not in left_out]
    return MultimodalLMConfig(
        DecoderConfig(40, 16, 1, 2, 2, 8, 24),
        generators={port: generators[port] for port in ports},
        output_projectors={port: LinearOutputConfig(16, widths[port], "mean") for port in ports},
        signal_tokens={port: (said,) for port in ports},
        generator_encoders={"find": ViTConfig(8, 4, 8, 1, 2, 12, projection_dim=6)},
    )


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
    return jax.tree.map(draw, MultimodalLM(config(1)).param_shapes())


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(4).integers(1, 40, (3, 6)).astype(np.int32)
    positions = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    return Batch({"text": TextStream(tokens, positions, np.ones_like(tokens))})


@pytest.fixture(scope="module")
def said(params, prompts):
    """What the model says most often, and so signals."""
    return int(np.bincount(generate(MultimodalLM(config(1)), params, prompts, TEXT).tokens.ravel()).argmax())


def test_a_gallery_is_embedded_batch_by_batch_and_ranked(params):
    model, random = MultimodalLM(config(1)), np.random.default_rng(2)
    images = list(random.normal(size=(5, 8, 8, 3)).astype(np.float32))
    one = make_gallery(model, params, "find", images, list("abcde"), batch_size=2)
    assert one.names == tuple("abcde") and one.embeddings.shape == (5, 5)
    np.testing.assert_allclose(np.linalg.norm(one.embeddings, axis=1), 1, rtol=1e-5)
    alone = make_gallery(model, params, "find", images[4:], batch_size=1)
    np.testing.assert_allclose(one.embeddings[4:], alone.embeddings, atol=1e-5)
    # Features go through the map alone.
    features = random.normal(size=(9, 6)).astype(np.float32)
    gallery = make_gallery(model, params, "find", features)
    own = params["generators"]["find"]["images"]
    wanted = features @ own["kernel"] + own["bias"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(gallery.embeddings, wanted, atol=1e-5)
    states = random.normal(size=(2, 3, 1, 16)).astype(np.float32)
    indices, scores = jax.jit(lambda params, states: rank(model, params, "find", states, gallery, 4))(params, states)
    out = params["output_projectors"]["find"]["out"]
    asked = states[:, :, 0] @ out["kernel"] + out["bias"]
    cosines = (asked / np.linalg.norm(asked, axis=-1, keepdims=True)) @ wanted.T
    np.testing.assert_array_equal(indices, np.argsort(-cosines, axis=-1)[..., :4])
    np.testing.assert_allclose(scores, np.sort(cosines, axis=-1)[..., :-5:-1], atol=1e-5)


def test_galleries_that_do_not_fit(params, prompts):
    model, vectors = MultimodalLM(config(1)), np.zeros((3, 6), np.float32)
    with pytest.raises(ValueError, match="image_out.*retrieves nothing.*find"):
        make_gallery(model, params, "image_out", vectors)
    with pytest.raises(ValueError, match="3 images with 2 names"):
        make_gallery(model, params, "find", vectors, ["a", "b"])
    with pytest.raises(ValueError, match="0 images"):
        make_gallery(model, params, "find", [])
    with pytest.raises(ValueError, match="4 best of a gallery of 3"):
        rank(model, params, "find", np.zeros((1, 1, 1, 16)), Gallery(np.zeros((3, 5))), 4)
    with pytest.raises(ValueError, match="find: 3 images, 4"):
        galleries = {"find": Gallery(np.zeros((3, 5)))}
        generate_media(model, params, prompts, TEXT, DrawOptions(num_retrieved=4), galleries=galleries)
    with pytest.raises(ValueError, match="'decision' retrieves nothing"):
        generate_media(model, params, prompts, TEXT, galleries={"decision": Gallery(np.zeros((3, 5)))})
    with pytest.raises(ValueError, match="num_retrieved"):
        DrawOptions(num_retrieved=0)


def test_who_decides():
    assert rivals(MultimodalLM(config(1)), "find") == ("decision", ("image_out",))
    for missing in ("decision", "image_out"):
        assert rivals(MultimodalLM(config(1, **{missing: True})), "find") == (None, ())
    apart = dataclasses.replace(config(1), signal_tokens={"image_out": (1,), "find": (1,), "decision": (2,)})
    assert rivals(MultimodalLM(apart), "find") == (None, ())


def test_each_signal_is_drawn_or_found_as_is_decided(params, prompts, said):
    model, options = MultimodalLM(config(said)), DrawOptions(1, seed=3, num_retrieved=2)
    drawing = MediaPrograms(model)
    run = lambda params, **more: generate_media(model, params, prompts, TEXT, options, None, drawing, **more)
    out, drawn = run(params)
    assert set(drawn) == {"image_out"}
    # The classifier's own bias is set where some of the signals that were written lie on either side.
    whole = continued(prompts.text, out)

    @jax.jit
    def logits(params):
        hidden = model.forward(params, {"text": whole})
        states, real = signal_states(model, "find", answers_only(whole, 6), hidden, NEW)
        return decision_logits(model, params, "decision", states), real, states

    found, real, states = map(np.asarray, logits(params))
    count = int(real.sum())
    assert count >= 3 and [len(row) for row in drawn["image_out"]] == real.sum(1).tolist()
    ahead = found[..., 1] - found[..., 0]
    ordered = np.sort(ahead[real])
    middle = (ordered[count // 2 - 1] + ordered[count // 2]) / 2
    retrieved = real & (ahead > middle)
    assert 0 < retrieved.sum() < count
    bias = params["generators"]["decision"]["out"]["bias"] + jnp.array([middle, 0.0])
    decision = {"out": {**params["generators"]["decision"]["out"], "bias": bias}}
    params = {**params, "generators": {**params["generators"], "decision": decision}}

    random = np.random.default_rng(5)
    names = tuple(f"{number}.png" for number in range(6))
    gallery = make_gallery(model, params, "find", random.normal(size=(6, 6)).astype(np.float32), names)
    again, both = run(params, galleries={"find": gallery})
    np.testing.assert_array_equal(again.tokens, out.tokens)
    indices, scores = jax.jit(lambda params: rank(model, params, "find", states, gallery, 2))(params)
    for row in range(3):
        numbers = np.flatnonzero(retrieved[row])
        assert [one.signal for one in both["find"][row]] == numbers.tolist()
        for one in both["find"][row]:
            np.testing.assert_array_equal(one.indices, indices[row, one.signal])
            np.testing.assert_allclose(one.scores, scores[row, one.signal], atol=1e-5)
            assert one.names == tuple(names[number] for number in one.indices)
        # What is drawn is what would have been drawn, less what was found.
        kept = [image for number, image in enumerate(drawn["image_out"][row]) if not retrieved[row, number]]
        assert len(both["image_out"][row]) == len(kept)
        for image, wanted in zip(both["image_out"][row], kept, strict=True):
            np.testing.assert_allclose(image, wanted, atol=1e-3)


def test_without_somebody_who_decides_signals_are_looked_up(params, prompts, said):
    model = MultimodalLM(config(said, image_out=True, decision=True))
    gallery = Gallery(np.eye(5, dtype=np.float32))
    out, found = generate_media(model, params, prompts, TEXT, galleries={"find": gallery})
    counts = [(row == said).sum() for row in out.tokens]
    assert set(found) == {"find"} and [len(row) for row in found["find"]] == counts
    assert all(one.names == () and one.indices.shape == (1,) for row in found["find"] for one in row)
    _, nothing = generate_media(model, params, prompts, TEXT)
    assert nothing == {}
