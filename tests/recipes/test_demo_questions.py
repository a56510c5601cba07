"""The demo's questions: what they say, what they never say, and how they are balanced."""

from collections import Counter

import numpy as np
import pytest

from mmjax.data.conversation import parse_record
from mmjax.recipes.demo import questions
from mmjax.recipes.demo.assets import load_assets


@pytest.fixture(scope="module")
def assets():
    return load_assets()


@pytest.fixture(scope="module")
def drawn(assets):
    asker, random = questions.Asker(assets), np.random.default_rng(0)
    return [question for picture in assets.of("train") for question in asker.questions(picture, random)]


def test_four_questions_a_picture_half_yes_half_no(drawn, assets):
    assert len(drawn) == 4 * len(assets.of("train"))
    exists = Counter(question.answer for question in drawn if question.kind == "exists")
    assert exists == {"Yes": len(assets.of("train")), "No": len(assets.of("train"))}


def test_answers_are_true(drawn, assets):
    for question in drawn:
        picture = question.picture
        if question.kind == "exists":
            subject = question.text.removeprefix("Is there ").removesuffix(" in the image?").split(" ", 1)[1]
            assert (subject in (picture.label, picture.noun)) == (question.answer == "Yes")
        elif question.kind == "color":
            assert question.answer.lower() == picture.color in assets.colors
        elif question.kind == "group":
            assert question.answer.lower() == picture.group and picture.color is None
        else:
            assert question.answer == picture.label.capitalize()


def test_what_is_held_out_is_in_no_training_text(drawn, assets):
    texts = " | ".join(f"{question.text} | {question.answer.lower()}" for question in drawn)
    for picture in assets.of("develop") + assets.of("final"):
        assert f"{picture.label} " not in texts and f"| {picture.label} |" not in texts
    labels = {question.text for question in drawn}
    for picture in assets.of("noun"):
        assert questions.exists_question(picture, picture.label, True).text not in labels


def test_wrong_answers_of_recoloured_pictures_vary(drawn):
    no = [q for q in drawn if q.kind == "exists" and q.answer == "No" and q.picture.color]
    same_color = sum(f" {q.picture.color} " in q.text for q in no)
    same_object = sum(f" {q.picture.noun} " in q.text for q in no)
    assert 0.2 < same_color / len(no) < 0.4 and 0.2 < same_object / len(no) < 0.4


def test_draws_repeat_with_the_seed(assets):
    asker, picture = questions.Asker(assets), assets.of("train")[40]
    first, again = (asker.questions(picture, np.random.default_rng((3, 5))) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("split", ["develop", "final"])
def test_evaluation_of_pairs_is_balanced(assets, split):
    asked = questions.pair_questions(assets, split)
    counts = {name: len(items) for name, items in asked.items()}
    assert counts == dict(name=129, color=129, object=258, pair=258)
    for name in ("object", "pair"):
        assert Counter(q.answer for q in asked[name]) == {"Yes": 129, "No": 129}
    assert all(question.picture.split == split for items in asked.values() for question in items)
    assert asked == questions.pair_questions(assets, split)


def test_evaluation_of_nouns(assets):
    asked = questions.noun_questions(assets)
    assert {name: len(items) for name, items in asked.items()} == dict(name=138, group=138, exists=276)


def test_article():
    picture = load_assets().pictures[0]
    texts = [questions.exists_question(picture, label, True).text for label in ("owl", "cat", "unicorn")]
    assert [text.split()[2] for text in texts] == ["an", "a", "a"]


def test_records_are_conversations(assets):
    picture = assets.of("final")[0]
    image = np.zeros((5, 7), np.float32)
    caption = parse_record(questions.caption_record(picture, image), "caption")
    assert [part.text for m in caption.messages for part in m.parts if hasattr(part, "text")] == [
        "An emoji of",
        ", an emoji of",
        f" {picture.label}.",
    ]
    assert caption.media("image")[0].source is image
    question = questions.color_question(picture)
    asked = parse_record(questions.question_record(question, image), "question")
    assert [message.role for message in asked.messages] == ["user", "assistant"]
    assert asked.messages[0].parts[1].text == "What colour is it?"
