"""Scores of the demo's answers, with 95 % intervals and the baselines that each must beat.

Works on lists of strings alone; what produced them does not matter. Baselines: "blind", the same model shown
the picture of another question, and "constant", the one answer that would have scored best if it were given
every time (which is the majority answer, or chance, where there are few answers).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.recipes.demo.questions import Question

# Words of a label that say nothing about what it shows.
FILLERS = frozenset("of with the and a an on in".split())

Rule = Callable[[str, Question], float]


def words(text: str) -> list[str]:
    """Lower-case words of the first sentence: "Blue frog.\\n" -> ["blue", "frog"]."""
    return re.findall(r"[a-z0-9']+", text.strip().lower().split("\n")[0].split(".")[0])


def exact(answer: str, question: Question) -> float:
    """1 if the answer has the words of the truth in the same order and no others."""
    return float(words(answer) == words(question.answer))


def names_color(answer: str, question: Question, colors: frozenset[str]) -> float:
    """1 if the picture's colour is the one colour that the answer names."""
    return float(colors & set(words(answer)) == {question.picture.color})


def names_object(answer: str, question: Question) -> float:
    """1 if the answer has the noun of the picture among its words."""
    return float(question.picture.noun in words(answer))


def first_word(answer: str, question: Question) -> float:
    """1 if the answer begins with the first word of the truth: yes, no, or a group."""
    return float(words(answer)[:1] == words(question.answer)[:1])


def overlap(answer: str, question: Question) -> float:
    """1 if the answer shares a word with the truth, fillers apart."""
    return float(bool(set(words(answer)) & set(words(question.answer)) - FILLERS))


def pair_rules(colors: Sequence[str]) -> dict[str, tuple[str, Rule]]:
    """Metric -> (which of `pair_questions` it reads, rule)."""
    palette = frozenset(colors)
    color = lambda answer, question: names_color(answer, question, palette)  # noqa: E731
    return {
        "exact": ("name", exact),
        "colour": ("name", color),
        "object": ("name", names_object),
        "what colour": ("color", exact),
        "yes/no, object": ("object", first_word),
        "yes/no, colour": ("pair", first_word),
    }


# Metric -> (which of `noun_questions` it reads, rule).
NOUN_RULES: dict[str, tuple[str, Rule]] = {
    "group of 8": ("group", first_word),
    "yes/no": ("exists", first_word),
    "naming, exact": ("name", exact),
    "naming, a word right": ("name", overlap),
}


def interval(values: np.ndarray, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean (Efron, 1979), resampling the first axis.

    Args:
        values: [n] or [n, k]; the k scores of one picture are kept together, as they are not independent.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    means = np.asarray(values, np.float64).reshape(len(values), -1).mean(1)
    draws = np.random.default_rng(seed).integers(len(means), size=(samples, len(means)))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def best_constant(questions: Sequence[Question], rule: Rule) -> tuple[str, float]:
    """The right answer of some question that scores best as the answer to all, and its score."""
    candidates = sorted({question.answer for question in questions})
    scores = [float(np.mean([rule(answer, question) for question in questions])) for answer in candidates]
    best = int(np.argmax(scores))
    return candidates[best], scores[best]


def score(
    rules: Mapping[str, tuple[str, Rule]],
    questions: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Sequence[str]],
    blind: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Applies every rule whose questions were answered.

    Args:
        rules: metric -> (name of its questions, rule).
        questions: name -> questions, those of one picture next to each other and equally many for each.
        answers: name -> one answer for each question.
        blind: the same of the model that was shown other pictures.

    Returns:
        Metric -> {"value", "low", "high", "n", "constant", "constant_answer", and, with `blind`, "blind",
        "blind_low", "blind_high"}.

    Raises:
        ValueError: the counts of questions and answers differ.
    """
    scores = {}
    for metric, (name, rule) in rules.items():
        if name not in answers:
            continue
        asked = questions[name]
        values = _values(asked, answers[name], rule, name)
        low, high = interval(values)
        constant_answer, constant = best_constant(asked, rule)
        scores[metric] = {
            "value": float(values.mean()),
            "low": low,
            "high": high,
            "n": len(asked),
            "constant": constant,
            "constant_answer": constant_answer,
        }
        if blind is not None and name in blind:
            values = _values(asked, blind[name], rule, name)
            low, high = interval(values)
            scores[metric] |= {"blind": float(values.mean()), "blind_low": low, "blind_high": high}
    return scores


def _values(
    questions: Sequence[Question], answers: Sequence[str], rule: Rule, name: str
) -> np.ndarray:
    """Scores [pictures, questions of a picture]."""
    if len(questions) != len(answers):
        raise ValueError(f"{name}: {len(questions)} questions but {len(answers)} answers")
    flat = np.array([rule(answer, question) for answer, question in zip(answers, questions, strict=True)])
    pictures = len({question.picture.name for question in questions})
    return flat.reshape(pictures, -1)


def shuffled(count: int, seed: int = 5) -> np.ndarray:
    """A permutation of `count` pictures that leaves none in its place, for the blind baseline.

    Raises:
        ValueError: fewer than two pictures.
    """
    if count < 2:
        raise ValueError(f"{count} picture(s) cannot be shuffled")
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty(count, int)
    moved[order] = np.roll(order, 1)
    return moved


def row(values: Sequence[bool], blind: Sequence[bool] | None = None, chance: float | None = None) -> dict[str, Any]:
    """One line of a table of scores."""
    low, high = interval(np.asarray(values, float))
    out = {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}
    if blind is not None:
        low, high = interval(np.asarray(blind, float))
        out |= {"blind": float(np.mean(blind)), "blind_low": low, "blind_high": high}
    return out if chance is None else {**out, "constant": chance, "constant_answer": "chance"}
