"""The demo's scores on answers whose scores are known."""

import numpy as np
import pytest

from mmjax.recipes.demo import evaluate
from mmjax.recipes.demo.assets import Picture
from mmjax.recipes.demo.questions import Question

COLORS = ("red", "blue", "green")


def frog(color="blue"):
    return Picture("1f438", "frog", "animals", color, "final")


def named(answer, color="blue"):
    return Question(frog(color), "What is this?", answer, "name")


def test_rules():
    question = named("Blue frog")
    assert evaluate.exact(" blue frog.\nand more", question) == 1
    assert evaluate.exact("blue frogs", question) == evaluate.exact("frog blue", question) == 0
    color = evaluate.pair_rules(COLORS)["colour"][1]
    assert color("a blue thing", question) == 1
    assert color("blue and red", question) == color("frog", question) == 0
    assert evaluate.names_object("green frog", question) == 1
    assert evaluate.names_object("bullfrog", question) == 0
    assert evaluate.first_word("Yes, there is", Question(frog(), "", "Yes", "exists")) == 1
    assert evaluate.first_word("", Question(frog(), "", "Yes", "exists")) == 0
    assert evaluate.overlap("a man", Question(frog(), "", "Man with a hat", "name")) == 1
    assert evaluate.overlap("cat with a bow", Question(frog(), "", "Man with a hat", "name")) == 0


def test_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).random(400) < 0.7
    low, high = evaluate.interval(values)
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert abs(low - (values.mean() - half)) < 0.01 and abs(high - (values.mean() + half)) < 0.01


def test_interval_keeps_the_questions_of_a_picture_together():
    each = np.random.default_rng(1).random(200) < 0.5
    twice = np.stack([each, each], 1)
    assert evaluate.interval(twice) == evaluate.interval(each)
    low, high = evaluate.interval(twice.ravel())
    wide_low, wide_high = evaluate.interval(twice)
    assert wide_high - wide_low > 1.2 * (high - low)


def test_best_constant_is_the_majority():
    questions = [named(f"{color} frog", color) for color in ("red", "blue", "blue", "green", "blue")]
    rule = evaluate.pair_rules(COLORS)["colour"][1]
    answer, value = evaluate.best_constant(questions, rule)
    assert (answer, value) == ("blue frog", 0.6)


def test_score_puts_baselines_beside():
    pictures = [Picture(str(i), f"noun{i}", "food", COLORS[i % 3], "final") for i in range(9)]
    asked = {
        "name": [Question(p, "What is this?", p.label.capitalize(), "name") for p in pictures],
        "object": [Question(p, "", answer, "exists") for p in pictures for answer in ("Yes", "No")],
    }
    right = {name: [question.answer for question in questions] for name, questions in asked.items()}
    moved = evaluate.shuffled(9)
    blind = {"name": [right["name"][i] for i in moved], "object": ["Yes"] * 18}
    scores = evaluate.score(evaluate.pair_rules(COLORS), asked, right, blind)
    assert set(scores) == {"exact", "colour", "object", "yes/no, object"}
    assert all(entry["value"] == entry["low"] == entry["high"] == 1 for entry in scores.values())
    assert scores["exact"]["blind"] == 0 and scores["yes/no, object"]["blind"] == 0.5
    assert scores["exact"]["constant"] == pytest.approx(1 / 9)
    assert scores["colour"]["constant"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="18 questions but 17 answers"):
        evaluate.score(evaluate.pair_rules(COLORS), asked, {"object": ["No"] * 17})


@pytest.mark.parametrize("count", [2, 3, 129])
def test_shuffled_moves_every_picture(count):
    moved = evaluate.shuffled(count)
    assert sorted(moved) == list(range(count)) and (moved != np.arange(count)).all()
