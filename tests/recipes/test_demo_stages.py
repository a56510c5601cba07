"""The demo's batches and answers with a tiny model in place of the pretrained one."""

import dataclasses

import numpy as np

from configs.demo import get_config
from mmjax.config import from_dict
from mmjax.recipes.demo import questions, training_data
from mmjax.recipes.demo.answers import Answerer
from mmjax.recipes.demo.assets import load_assets
from mmjax.recipes.demo.run import check_goals, limited
from mmjax.recipes.demo.system import PORT, start_from_ridge
from mmjax.train.stage import StageConfig


def stage(kind, **changes):
    name = {"captions": "pretrain", "questions": "instruct"}[kind]
    settings = {**get_config()["stages"][name], "batch_size": 4, "name": name}
    settings["data"] = {"kind": kind, "length": 448, "targets": 96, **changes}
    return from_dict(StageConfig, settings)


def batch_of(kind, demo_system, demo_features):
    assets = limited(load_assets(), 16)
    shown = assets.of("train")
    arrays = np.stack([demo_features[picture.name] for picture in shown])
    pipeline = training_data.stage_pipeline(
        stage(kind), demo_system.for_features, shown, arrays, questions.Asker(load_assets()), 0.5
    )
    return pipeline.batch(0), shown, arrays


def test_captions_batch(demo_system, demo_features, demo_tokenizer):
    batch, shown, arrays = batch_of("captions", demo_system, demo_features)
    text = batch.text
    labels = {f" {picture.label}.": i for i, picture in enumerate(shown)}
    colored = 0
    for row in range(4):
        real = text.segment_ids[row] > 0
        target = demo_tokenizer.decode(text.tokens[row][text.loss_weights[row] > 0])
        whole = demo_tokenizer.decode(text.tokens[row][real])
        assert whole == f"An emoji of, an emoji of{target}"
        np.testing.assert_array_equal(text.media_index[row][text.media_index[row] >= 0], np.arange(6))
        np.testing.assert_array_equal(batch.media[PORT].values[row], arrays[labels[target]])
        colored += shown[labels[target]].color is not None
    assert colored == 2


def test_questions_share_one_image(demo_system, demo_features, demo_tokenizer):
    batch, shown, _ = batch_of("questions", demo_system, demo_features)
    text = batch.text
    for row in range(4):
        assert (text.media_index[row] >= 0).sum() == 6
        assert set(np.unique(text.attend_group[row][text.segment_ids[row] > 0])) == {0, 1, 2, 3, 4}
        answers = []
        for group in range(1, 5):
            mine = text.attend_group[row] == group
            ids = text.tokens[row][mine & (text.loss_weights[row] > 0)]
            answers.append(demo_tokenizer.decode(ids, skip_special=False))
        assert all(answer.endswith("<|im_end|>") for answer in answers)
        assert answers[2:] == ["Yes<|im_end|>", "No<|im_end|>"]
        assert answers[0].removesuffix("<|im_end|>") in {picture.label.capitalize() for picture in shown}


def test_first_words_are_the_first_tokens_of_free_answers(demo_system, demo_features):
    assets = limited(load_assets(), 16)
    answerer = Answerer(demo_system.model, demo_system.for_features, demo_features, 5, 1)
    asked = questions.pair_questions(assets, "develop")
    asked = asked["object"] + asked["pair"]
    words = answerer.first_words(demo_system.params, asked)
    assert [word.strip() for word in words] == answerer.answer(demo_system.params, asked)
    assert len(set(words)) > 1
    names = [picture.name for picture in assets.of("final")]
    shown = [names[i % len(names)] for i in range(len(asked))]
    blind = [
        dataclasses.replace(q, picture=next(p for p in assets.pictures if p.name == name))
        for q, name in zip(asked, shown, strict=True)
    ]
    words = answerer.first_words(demo_system.params, asked, shown)
    assert [word.strip() for word in words] == answerer.answer(demo_system.params, blind)


def test_ridge_start_puts_pictures_near_their_words(demo_system):
    """With as many channels as pictures, tokens recover which word each picture has."""
    random = np.random.default_rng(1)
    labels = ["red cat", "blue cat", "red dog", "blue dog", "green cat"]
    codes = {word: random.normal(size=12) for word in ("red", "blue", "green", "cat", "dog")}
    vectors = [np.sum([codes[word] for word in label.split()], 0) for label in labels]
    features = np.stack([np.tile(vector, (5, 1)) for vector in vectors]).astype(np.float32)
    params = start_from_ridge(demo_system, features, labels, 1e-3)
    projector = params["projectors"][PORT]
    x = (features[:, 0] - projector["mean"]) / projector["std"]
    tokens = x @ projector["global_0"]["kernel"] + projector["global_0"]["bias"]
    same = np.linalg.norm(tokens[0] - tokens[2])
    assert same < 0.3 * np.linalg.norm(tokens[0] - tokens[1])
    last = x @ projector["global_1"]["kernel"] + projector["global_1"]["bias"]
    assert np.linalg.norm(last[0] - last[1]) < 0.3 * np.linalg.norm(last[0] - last[2])


def test_limited_keeps_every_split():
    assets = limited(load_assets(), 16)
    assert {len(assets.of(split)) for split in ("train", "noun", "develop", "final")} == {16}
    assert sum(picture.color is not None for picture in assets.of("train")) == 8


def test_goals():
    scores = {"instruct": {"pairs": {"exact": {"value": 0.9, "blind": 0.05}}}}
    goals = [
        ("instruct", "pairs", "exact", "value", 0.85, 1.0),
        ("instruct", "pairs", "exact", "blind", 0.0, 0.03),
        ("pretrain", "pairs", "exact", "value", 0.0, 1.0),
    ]
    assert [goal["met"] for goal in check_goals(goals, scores)] == [True, False, False]
