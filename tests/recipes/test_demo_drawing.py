"""The drawing part of the demo with a tiny model: what is trained on what, and how drawings are judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from configs.demo import get_config
from mmjax.data.contracts import Batch
from mmjax.recipes.demo import drawing, requests
from mmjax.recipes.demo.assets import load_assets
from mmjax.recipes.demo.draw_scores import DIRECTIONS, Drawer, Drawn, Judge, frechet, score_drawings
from mmjax.recipes.demo.questions import Asker
from mmjax.recipes.demo.run import limited
from mmjax.signals import condition
from mmjax.train.features import Predictions
from mmjax.train.signal_loss import SignalLoss

PORT = requests.PORT


@pytest.fixture(scope="module")
def assets():
    return limited(load_assets(), 16)


@pytest.fixture(scope="module")
def settings():
    own = get_config("short")["drawing"]
    denoiser = {"width": 8, "hidden": 12, "num_layers": 1, "context_width": 12}
    return {**own, "patches": {"patch": 16, "latent_channels": 5}, "denoiser": denoiser, "words": ("a", "b", "c")}


@pytest.fixture(scope="module")
def drawer(demo_system, assets, settings):
    images = drawing.pixels(assets, assets.of("train"))
    return drawing.with_drawing(demo_system, demo_system.params, settings, images)


@pytest.fixture(scope="module")
def shown(assets):
    return assets.of("train")


@pytest.fixture(scope="module")
def asking(drawer, shown):
    return requests.read(drawer, drawer.params, [requests.draw_record(picture) for picture in shown], 3)


@pytest.fixture(scope="module")
def states(drawer, asking):
    return requests.request_states(drawer, asking)


def sample_of(drawer, picture):
    return drawer.for_features.from_record(requests.draw_record(picture), picture.name)


def test_signals_are_new_words_that_begin_as_old_ones(drawer, demo_system, demo_tokenizer):
    config, old = drawer.model.config, demo_system.model.config.backbone
    ids = config.signal_tokens[PORT]
    assert ids == (old.vocab_size, old.vocab_size + 1, old.vocab_size + 2) and config.backbone.new_tokens == 3
    table = demo_system.params["backbone"]["embed"]["embedding"]
    # " a" is a letter and the mark of a space to this tokenizer, whose first token is the space.
    first = [demo_tokenizer.encode(f" {word}", continued=True)[0] for word in "abc"]
    np.testing.assert_array_equal(drawer.params["backbone"]["embed_new"]["embedding"], table[np.array(first)])
    assert demo_tokenizer.vocab_size == old.vocab_size, "the seeing system's tokenizer is as it was"
    assert not set(drawer.processor.tokenizer.encode("[IMG0] [IMG1]")) & set(ids), "no user can write a signal"


def test_a_request_is_answered_by_a_signal(drawer):
    picture = next(picture for picture in load_assets().pictures if picture.label == "orange shark")
    sample, tokenizer = sample_of(drawer, picture), drawer.processor.tokenizer
    target = sample.tokens[sample.loss_weights > 0]
    assert tokenizer.decode(target, skip_special=False) == "[IMG0][IMG1][IMG2]<|im_end|>"
    said = tokenizer.decode(sample.tokens, skip_special=False)
    assert "Draw an orange shark.<|im_end|>" in said and not sample.targets


def test_requests_come_in_many_wordings_and_others_in_two_kinds(shown, demo_features):
    pictures = load_assets().of("train")
    asked = [record["messages"][0]["content"] for record in requests.request_records(pictures, random_of(0))]
    first = sum(text.startswith("Draw ") for text in asked)
    assert abs(first / len(asked) - 2 / 3) < 0.05
    assert all(name in text for name, text in zip((p.label for p in pictures), asked, strict=True))
    assert len({text.split(" ")[0] for text in asked}) == 7
    arrays = np.stack([demo_features[picture.name] for picture in shown])
    records = requests.other_records(shown, arrays, Asker(load_assets()), 5, random_of(1))
    assert [isinstance(record["messages"][0]["content"], list) for record in records] == [True] * 5 + [False] * 5
    again = requests.other_records(shown, arrays, Asker(load_assets()), 5, random_of(1))
    assert [str(record) for record in again] == [str(record) for record in records]


def random_of(seed):
    return np.random.default_rng(seed)


def test_predictions_are_in_the_order_of_the_records(drawer, shown, asking):
    ids = drawer.model.config.signal_tokens[PORT]
    end = drawer.processor.tokenizer.token_id("<|im_end|>")
    assert asking.targets.tolist() == [*ids, end] * len(shown)
    assert asking.rows.tolist() == np.repeat(np.arange(len(shown)), 4).tolist()
    sample = sample_of(drawer, shown[1])
    text = requests.collate([sample], drawer.processor.plan).text
    logits = drawer.model.logits(drawer.params, drawer.model.forward(drawer.params, {"text": text}))[0]
    places = np.flatnonzero(sample.loss_weights > 0) - 1
    wanted = jax.nn.logsumexp(logits[places, : ids[0]], axis=-1)
    np.testing.assert_allclose(asking.others[4:8], wanted, atol=1e-4)


def test_fitted_rows_say_signals_where_they_are_to_be_said(drawer, shown, asking, states):
    ids, random = np.array(drawer.model.config.signal_tokens[PORT]), np.random.default_rng(0)
    kinds = random.normal(size=(5, 24))

    def of(kinds_of, targets):
        found = (kinds[kinds_of] + 0.1 * random.normal(size=(len(targets), 24))).astype(np.float32)
        return Predictions(found, np.full(len(targets), 6.0, np.float32), np.array(targets), np.zeros(len(targets)))

    one, two = of([0, 1, 2, 3] * 9, [*ids, 5] * 9), of([3, 4, 4] * 7, [7, 8, 9] * 7)
    params = requests.with_rows(drawer, drawer.params, (one, two), 1e-4)
    new = lambda part: np.asarray(drawer.model.logits(params, jnp.asarray(part.states)))[:, ids[0] :]
    np.testing.assert_array_equal(new(one).reshape(9, 4, 3)[:, :3].argmax(-1), [[0, 1, 2]] * 9)
    assert (new(one).reshape(9, 4, 3)[:, :3].max(-1) > 6).all() and (new(two) < 6).all()
    # Nothing else of the model was touched, and what it reads is as it was.
    same = jax.tree.map(np.array_equal, params, drawer.params)
    changed = [jax.tree_util.keystr(path) for path, equal in jax.tree.leaves_with_path(same) if not equal]
    assert changed == ["['backbone']['lm_head_new']['kernel']"]
    again = requests.read(drawer, params, [requests.draw_record(picture) for picture in shown], 5)
    np.testing.assert_allclose(requests.request_states(drawer, again), states, atol=1e-5)


def test_states_are_those_of_the_whole_text(drawer, shown, states):
    assert states.shape == (len(shown), 3, 24)
    for number in (0, len(shown) - 1):
        sample = sample_of(drawer, shown[number])
        text = requests.collate([sample], drawer.processor.plan).text
        hidden = drawer.model.forward(drawer.params, {"text": text})
        at = np.flatnonzero(text.tokens[0] == drawer.model.config.signal_tokens[PORT][0])[0]
        np.testing.assert_allclose(states[number], hidden[0, at : at + 3], atol=1e-5)


def test_a_sketch_starts_as_the_regression(drawer, assets, shown, states):
    images = drawing.pixels(assets, shown)
    latents = drawing.latents_of(drawer, drawer.params, images)
    assert latents.shape == (len(shown), 4, 4, 5)
    # With hardly any penalty, and more numbers in a state than pictures, the regression knows every picture.
    params = drawing.start_projector(drawer.params, states, latents, 1e-9)
    found = condition(drawer.model, params, PORT, jnp.asarray(states)[:, None])
    np.testing.assert_allclose(found.extras["sketch"], latents, atol=0.02)
    last = params["generators"][PORT]["denoiser"]["proj_out"]
    assert all(not leaf.any() for leaf in jax.tree.leaves(last)), "the first guess is the average picture"


def test_kept_states_cost_what_read_texts_do(drawer, shown, states):
    model, latents = drawer.model, np.random.default_rng(0).normal(size=(4, 1, 4, 4, 5)).astype(np.float32)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), drawer.params)
    params = {**params, "backbone": drawer.params["backbone"]}
    samples = [sample_of(drawer, picture) for picture in shown[:4]]
    batch = requests.collate(samples, drawer.processor.plan)
    target = {"latents": latents, "weights": np.array([[1.0], [1.0], [0.0], [1.0]], np.float32)}
    whole = batch.replace(targets={PORT: target})
    kept = drawing.DrawBatches(states, latents[:, 0], (np.arange(4), np.arange(0)), 0.5, 4, 0).batch(0)
    kept = kept.replace(targets={PORT: {**target, "states": states[:4, None]}})

    @jax.jit
    def both(params):
        rng, loss = jax.random.key(3), SignalLoss(drop=0.3)
        (_, one), (total, other) = loss(model, params, whole, rng), loss(model, params, kept, rng)
        return one["diffusion"] / one["weight"], other["diffusion"] / other["weight"], total / other["weight"]

    one, other, total = both(params)
    assert one > 0
    np.testing.assert_allclose(other, one, rtol=1e-5)
    np.testing.assert_allclose(total, one, rtol=1e-5)


def test_batches_depend_on_the_step_alone():
    states, latents = np.arange(10.0).reshape(10, 1, 1), np.arange(10.0).reshape(10, 1, 1, 1)
    groups = (np.arange(4), np.arange(4, 10))
    batches = drawing.DrawBatches(states, latents, groups, 0.25, 8, 5)
    iterator = batches.iterator(2)
    first, second = next(iterator), next(iterator)
    jax.tree.map(np.testing.assert_array_equal, second, batches.batch(3))
    chosen = np.concatenate([batches.batch(step).targets[PORT]["states"].ravel() for step in range(50)])
    assert ((chosen >= 4).reshape(50, 8).sum(axis=1) == 2).all() and set(chosen) == set(range(10))
    np.testing.assert_array_equal(first.targets[PORT]["states"].ravel(), first.targets[PORT]["latents"].ravel())
    assert isinstance(first, Batch) and not first.text.segment_ids.any()


def test_a_model_that_writes_no_signal_draws_nothing(drawer, assets):
    pictures = assets.of("develop")[:2]
    # Fresh rows say nothing: their logits are 0, and some old token's is above.
    quiet = Drawer(drawer, drawer.params, 2, 4, 1.0)
    assert [one.image for one in quiet(pictures, (1,))[1]] == [None, None]
    free = quiet.unconditional(2, 2)
    assert len(free) == 2 and free[0].shape == (64, 64, 3) and free[0].dtype == np.uint8


@pytest.fixture(scope="module")
def judge(demo_system, assets):
    """By pixels in small rather than by an encoder of random weights, which sees all pictures alike."""
    small = lambda image: image.reshape(8, 8, 8, 8, 3).mean((1, 3)).ravel()[None] / 255
    features = {picture.name: small(assets.pixels(picture)) for picture in assets.pictures}
    training = np.stack([features[picture.name] for picture in assets.of("train")])
    judge = Judge(demo_system, demo_system.params, assets, training, features)
    judge.see = lambda images: np.stack([judge._standardised(small(image)[0]) for image in images])
    return judge


def test_real_pictures_are_judged_right_and_others_wrong(judge, assets):
    pictures = assets.of("develop")
    real = [Drawn(picture, assets.pixels(picture)) for picture in pictures]
    scores = score_drawings(judge, {"pairs": real})["pairs"]
    count = len(pictures)
    assert scores[f"right picture first of {count}"]["value"] == 1
    assert scores["colour of 8"]["value"] == 1 and scores["draws when asked"]["value"] == 1
    assert scores[f"right picture first of {count}"]["blind"] < 0.2
    assert scores["colour of 8"]["constant"] == 1 / 8
    missing = [dataclasses.replace(one, image=None) if number % 2 else one for number, one in enumerate(real)]
    scores = score_drawings(judge, {"pairs": missing})["pairs"]
    for metric in ("draws when asked", f"right picture first of {count}", "colour of 8"):
        assert scores[metric]["value"] == pytest.approx((count + 1) // 2 / count), metric
    nothing = [dataclasses.replace(one, image=None) for one in real]
    assert score_drawings(judge, {"nouns": nothing})["nouns"]["draws when asked"]["value"] == 0
    wrong = [dataclasses.replace(picture, color="red" if picture.color != "red" else "blue") for picture in pictures]
    repainted = [Drawn(one.picture, assets.pixels(other)) for one, other in zip(real, wrong, strict=True)]
    assert score_drawings(judge, {"pairs": repainted})["pairs"]["colour of 8"]["value"] == 0


def test_ranks_count_pictures_that_are_more_alike(judge, assets):
    pictures = assets.of("develop")[:7]
    others = pictures[1:] + pictures[:1]
    drawn = [Drawn(picture, assets.pixels(other)) for picture, other in zip(pictures, others, strict=True)]
    seen = judge.see([one.image for one in drawn])
    ranks = judge.ranks(drawn, seen)
    real = np.stack([judge.real[picture.name] for picture in pictures])
    for number, rank in enumerate(ranks):
        like = [a @ seen[number] / np.linalg.norm(a) / np.linalg.norm(seen[number]) for a in real]
        assert rank == sum(value > like[number] for value in like) and rank >= 1


@pytest.mark.parametrize("sizes", [(200, 90, 5), (60, 61, 12)])
def test_frechet_distance_is_scipys(sizes):
    random = np.random.default_rng(0)
    one = random.normal(size=(sizes[0], sizes[2])) @ random.normal(size=(sizes[2], sizes[2]))
    other = random.normal(size=(sizes[1], sizes[2])) + 0.3
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    wanted = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a + b - 2 * root.real)
    assert frechet(one, other) == pytest.approx(wanted, rel=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert DIRECTIONS < 64
