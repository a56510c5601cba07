"""What is asked about a picture, in training and in evaluation, as plain data.

Stage 1 completes one sentence; stage 2 answers four questions about each picture. Neither a held-out noun
nor a held-out pair of colour and object occurs in any training text, not even as the wrong answer.
"""

import dataclasses
from typing import Any

import numpy as np

from mmjax.recipes.demo.assets import Assets, Picture

NAME_QUESTIONS = ("What is this?", "Describe the image.", "What does the picture show?")
COLOR_QUESTION = "What colour is it?"
GROUP_QUESTION = "What category is this?"
CAPTION_START, CAPTION_MIDDLE, CAPTION_END = "An emoji of", ", an emoji of", "."


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one picture, with the right answer.

    Attributes:
        picture: what is looked at.
        text: the question; "" asks for the sentence of stage 1 to be completed.
        answer: in the words and capitals that training uses.
        kind: "name", "color", "group" or "exists" (yes or no).
    """

    picture: Picture
    text: str
    answer: str
    kind: str


def name_question(picture: Picture, wording: int = 0) -> Question:
    """Asks what the picture shows, in one of three wordings."""
    return Question(picture, NAME_QUESTIONS[wording], picture.label.capitalize(), "name")


def caption_question(picture: Picture) -> Question:
    """Stage 1's sentence, to be completed."""
    return Question(picture, "", picture.label, "name")


def color_question(picture: Picture) -> Question:
    """Asks for the colour of a recoloured object."""
    return Question(picture, COLOR_QUESTION, picture.color.capitalize(), "color")


def group_question(picture: Picture) -> Question:
    """Asks for the group, one word of eight."""
    return Question(picture, GROUP_QUESTION, picture.group.capitalize(), "group")


def exists_question(picture: Picture, label: str, answer: bool) -> Question:
    """Asks whether `label` is in the picture."""
    return Question(
        picture, f"Is there {article(label)} {label} in the image?", "Yes" if answer else "No", "exists"
    )


def article(label: str) -> str:
    """What stands in front of it."""
    return "an" if label[0] in "aeiou" and not label.startswith("uni") else "a"


class Asker:
    """Draws stage 2's questions. `random` decides, so a seed and a step number give the same ones again."""

    def __init__(self, assets: Assets):
        self.assets = assets
        shown = assets.of("train")
        self.plain = [picture for picture in shown if picture.color is None]
        self.by_group = {group: [p for p in self.plain if p.group == group] for group in assets.groups}
        self.objects = sorted({picture.noun for picture in shown if picture.color})
        self.pairs = {(picture.color, picture.noun) for picture in shown if picture.color}
        self.colors = list(assets.colors)

    def questions(self, picture: Picture, random: np.random.Generator) -> list[Question]:
        """Four questions about a training picture: its name, one word about it, and a yes and a no."""
        first = name_question(picture, int(random.integers(len(NAME_QUESTIONS))))
        if picture.color is None:
            other = self._other_noun(picture, random)
            yes, no = picture.label, other
            return [first, group_question(picture), *self._both(picture, yes, no)]
        draw = random.random()
        if draw < 0.3:
            yes, no = picture.noun, self._other(self.objects, picture.noun, random)
        elif draw < 0.7:
            colors = [color for color in self.colors if (color, picture.noun) in self.pairs]
            yes, no = picture.label, f"{self._other(colors, picture.color, random)} {picture.noun}"
        else:
            objects = [noun for noun in self.objects if (picture.color, noun) in self.pairs]
            yes, no = picture.label, f"{picture.color} {self._other(objects, picture.noun, random)}"
        return [first, color_question(picture), *self._both(picture, yes, no)]

    @staticmethod
    def _both(picture: Picture, yes: str, no: str) -> list[Question]:
        return [exists_question(picture, yes, True), exists_question(picture, no, False)]

    @staticmethod
    def _other(words: list[str], taken: str, random: np.random.Generator) -> str:
        words = [word for word in words if word != taken]
        return words[random.integers(len(words))]

    def _other_noun(self, picture: Picture, random: np.random.Generator) -> str:
        """Another training noun, four times in ten of the same group."""
        pool = self.plain if random.random() < 0.6 else self.by_group[picture.group]
        return self._other([other.label for other in pool], picture.label, random)


def pair_questions(assets: Assets, split: str, seed: int = 7) -> dict[str, list[Question]]:
    """Evaluation on the held-out colour and object pairs of a split ("develop" or "final").

    Returns:
        "name" and "color": one question a picture. "object": two, its noun and another object's. "pair": two,
        its label and the object in a wrong colour. Yes and no are equally often right.
    """
    random = np.random.default_rng(seed)
    pictures = assets.of(split)
    nouns = sorted({picture.noun for picture in pictures})
    asked = {"name": [], "color": [], "object": [], "pair": []}
    for picture in pictures:
        other = Asker._other(nouns, picture.noun, random)
        wrong = Asker._other(list(assets.colors), picture.color, random)
        asked["name"].append(name_question(picture))
        asked["color"].append(color_question(picture))
        asked["object"] += Asker._both(picture, picture.noun, other)
        asked["pair"] += Asker._both(picture, picture.label, f"{wrong} {picture.noun}")
    return asked


def noun_questions(assets: Assets, seed: int = 7) -> dict[str, list[Question]]:
    """Evaluation on nouns that were never shown: "name", "group", and "exists" against another such noun."""
    random = np.random.default_rng(seed)
    pictures = assets.of("noun")
    labels = [picture.label for picture in pictures]
    asked = {"name": [], "group": [], "exists": []}
    for picture in pictures:
        asked["name"].append(name_question(picture))
        asked["group"].append(group_question(picture))
        asked["exists"] += Asker._both(
            picture, picture.label, Asker._other(labels, picture.label, random)
        )
    return asked


def caption_record(picture: Picture, image: Any) -> dict[str, Any]:
    """Stage 1's record: "An emoji of <image>, an emoji of blue frog." with the loss on the words behind."""
    prompt = [
        {"type": "text", "text": CAPTION_START},
        {"type": "image", "image": image},
        {"type": "text", "text": CAPTION_MIDDLE},
    ]
    answer = [{"type": "text", "text": f" {picture.label}{CAPTION_END}"}]
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def question_record(question: Question, image: Any) -> dict[str, Any]:
    """One question as a conversation of a user, who shows the image, and an assistant."""
    asked = [{"type": "image", "image": image}, {"type": "text", "text": question.text}]
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": question.answer},
        ]
    }
