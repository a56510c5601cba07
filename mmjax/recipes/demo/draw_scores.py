"""What the demo's model draws when it is asked, and how right that is, as the frozen image encoder sees it.

The whole path is asked: prompt, LLM, its own decision to write a signal, output projector, generator. A prompt whose
answer has no picture counts as a picture that is wrong.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.generators.schedules import make_steps
from mmjax.infer.generate import GenerateOptions, Programs
from mmjax.infer.media import DrawOptions, MediaPrograms, generate_media
from mmjax.recipes.demo.assets import Assets, Picture
from mmjax.recipes.demo.drawing import PORT, prompt_record
from mmjax.recipes.demo.evaluate import row, shuffled
from mmjax.recipes.demo.questions import Question, question_record
from mmjax.recipes.demo.system import PORT as SEEN
from mmjax.recipes.demo.system import System
from mmjax.signals import draw_media
from mmjax.train.features import cache_features

CANDIDATES = 100
# Directions of the features that a Fréchet distance is taken in: fewer than there are pictures.
DIRECTIONS = 48


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A prompt and what came of it.

    Attributes:
        picture: what was asked for.
        image: uint8 [H, W, 3], or None: the model did not draw.
    """

    picture: Picture
    image: np.ndarray | None


class Drawer:
    """Draws what prompts ask for; programs compile once.

    Args:
        system: with a generator.
        params: its.
        batch_size: prompts of a call.
        max_new_tokens: of an answer.
        guidance_scale: of classifier-free guidance.
    """

    def __init__(self, system: System, params: Any, batch_size: int, max_new_tokens: int, guidance_scale: float):
        self.system, self.params = system, params
        self.batch_size, self.max_new_tokens, self.guidance_scale = batch_size, max_new_tokens, guidance_scale
        self.programs, self.drawing = Programs(system.model), MediaPrograms(system.model)

    def __call__(self, pictures: Sequence[Picture], steps: int) -> list[Drawn]:
        """What the model draws when it is asked for these pictures, in so many steps."""
        made = self._images([prompt_record(picture) for picture in pictures], steps)
        return [Drawn(picture, image) for picture, image in zip(pictures, made, strict=True)]

    def draws(self, questions: Sequence[Question], features: Mapping[str, np.ndarray]) -> list[bool]:
        """Whether it draws where it is asked about what it sees."""
        records = [question_record(question, features[question.picture.name]) for question in questions]
        records = [{"messages": record["messages"][:1]} for record in records]
        return [image is not None for image in self._images(records, 1)]

    def _images(self, records: Sequence[Mapping[str, Any]], steps: int) -> list[np.ndarray | None]:
        """The first picture that each answer has, uint8 [H, W, 3], or None."""
        tokenizer, processor = self.system.processor.tokenizer, self.system.for_features
        samples = [
            processor.sample(parse_record(record, f"request {number}"), add_generation_prompt=True)
            for number, record in enumerate(records)
        ]
        pad = tokenizer.pad_id or 0
        options = GenerateOptions(max_new_tokens=self.max_new_tokens, stop_ids=(tokenizer.eos_id,), pad_id=pad)
        draw = DrawOptions(num_inference_steps=steps, guidance_scale=self.guidance_scale)
        bucket, drawn = processor.plan.bucket(samples), []
        for start in range(0, len(samples), self.batch_size):
            chunk = samples[start : start + self.batch_size]
            filled = [*chunk, *[chunk[-1]] * (self.batch_size - len(chunk))]
            batch = collate(filled, processor.plan, pad, bucket=bucket)
            rows = range(start, start + self.batch_size)
            _, made = generate_media(
                self.system.model, self.params, batch, options, draw, self.programs, self.drawing, rows, len(chunk)
            )
            drawn += [as_bytes(images[0]) if images else None for images in made[PORT]]
        return drawn

    def unconditional(self, count: int, steps: int, seed: int = 0) -> list[np.ndarray]:
        """uint8 pictures of no prompt at all: of signals whose states are zeros, as guidance knows them."""
        model = self.system.model
        shape = (count, 1, len(model.config.signal_tokens[PORT]), model.config.backbone.width)
        table = make_steps(model.config.generators[PORT].schedule, steps)
        keys = jax.random.split(jax.random.key(seed), count)
        draw = jax.jit(lambda params, keys: draw_media(model, params, PORT, jnp.zeros(shape), table, None, keys))
        parts = {name: self.params[name] for name in ("generators", "output_projectors")}
        return [as_bytes(image) for image in np.asarray(draw(parts, keys[:, None]))[:, 0]]


def as_bytes(image: np.ndarray) -> np.ndarray:
    """float [H, W, 3] from 0 to 1 -> uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


class Judge:
    """Compares pictures by what the frozen encoder sees in them: the first of its features, standardised.

    Args:
        system, params: whose encoder it is.
        assets: the real pictures.
        training: features [n, N, D] of the training pictures, which say what is usual.
        features: name of a picture -> its features [N, D].
    """

    def __init__(
        self, system: System, params: Any, assets: Assets, training: np.ndarray, features: Mapping[str, np.ndarray]
    ):
        self.system, self.params, self.assets = system, params, assets
        self.mean, self.std = training[:, 0].mean(0), training[:, 0].std(0) + 0.1
        usual = (training[:, 0] - self.mean) / self.std
        self.directions = np.linalg.svd(usual, full_matrices=False)[2][:DIRECTIONS].T
        self.real = {name: self._standardised(rows[0]) for name, rows in features.items()}

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.std

    def see(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, D] of uint8 pictures."""
        process = self.system.processor.images[SEEN]
        arrays = (process(image, f"drawing {number}") for number, image in enumerate(images))
        return self._standardised(cache_features(self.system.model, self.params, SEEN, arrays, 16)[:, 0])

    def ranks(
        self, drawn: Sequence[Drawn], seen: np.ndarray, order: np.ndarray | None = None, seed: int = 3
    ) -> np.ndarray:
        """How many of 99 other real pictures are more like a drawing than the right one, int [n]; 100 where none is.

        Args:
            drawn: those asked for are the candidates.
            seen: features of those that were drawn, in order.
            order: other drawings to judge in the place of each, for the blind baseline.
        """
        real = unit(np.stack([self.real[one.picture.name] for one in drawn]))
        random, out = np.random.default_rng(seed), np.full(len(drawn), CANDIDATES)
        rows = np.cumsum([one.image is not None for one in drawn]) - 1
        for number in range(len(drawn)):
            at = number if order is None else order[number]
            others = np.delete(np.arange(len(drawn)), number)
            others = random.permutation(others)[: CANDIDATES - 1]
            if drawn[at].image is not None:
                like = real @ unit(seen[rows[at]])
                out[number] = np.sum(like[others] > like[number])
        return out

    def colors(self, drawn: Sequence[Drawn], order: np.ndarray | None = None) -> np.ndarray:
        """Whether the nearest of an object's paintings in all colours has the one asked for, bool [n]."""
        right, palette = np.zeros(len(drawn), bool), list(self.assets.colors)
        for number, one in enumerate(drawn):
            image = (one if order is None else drawn[order[number]]).image
            if image is None:
                continue
            painted = [dataclasses.replace(one.picture, color=color) for color in palette]
            painted = np.stack([self.assets.pixels(picture) for picture in painted]).astype(np.float32)
            nearest = np.square(painted - image.astype(np.float32)).mean((1, 2, 3)).argmin()
            right[number] = palette[nearest] == one.picture.color
        return right

    def distance(self, seen: np.ndarray, pictures: Sequence[Picture]) -> dict[str, Any]:
        """Fréchet distance of drawings' features and those of real pictures (Heusel et al., 2017), as a score."""
        real = np.stack([self.real[picture.name] for picture in pictures])
        return {"value": frechet(seen @ self.directions, real @ self.directions), "n": len(seen)}

    def apart(self, images: Sequence[np.ndarray], pictures: Sequence[Picture]) -> dict[str, Any]:
        """`distance` of pictures that were drawn without a prompt."""
        return self.distance(self.see(images), pictures)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors [..., D] of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """|difference of means|^2 + tr(A + B - 2 (A B)^(1/2)) of two samples [n, D] and [m, D], with covariances A, B."""
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (one, other)), strict=True)
    # The eigenvalues of A B are those of a matrix that is symmetric and has none below 0, but for rounding.
    product = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    between = 2 * np.sqrt(np.maximum(product, 0)).sum()
    apart = float(np.square(means[0] - means[1]).sum())
    return apart + float(np.trace(covariances[0]) + np.trace(covariances[1]) - between)


def score_drawings(judge: Judge, drawn: Mapping[str, Sequence[Drawn]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of what was drawn, in the form of `mmjax.recipes.demo.evaluate.score`.

    Args:
        drawn: "pairs", "trained" and "nouns" -> drawings.
    """
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for held, items in drawn.items():
        images = [one.image for one in items if one.image is not None]
        seen = judge.see(images) if images else np.zeros((0, len(judge.mean)), np.float32)
        order = shuffled(len(items))
        ranks, blind = judge.ranks(items, seen), judge.ranks(items, seen, order)
        count = min(CANDIDATES, len(items))
        rows = {"draws when asked": row([one.image is not None for one in items])}
        for most, where in ((1, "first"), (10, "among the first 10")):
            rows[f"right picture {where} of {count}"] = row(ranks < most, blind < most, most / count)
        if held == "pairs":
            rows["colour of 8"] = row(judge.colors(items), judge.colors(items, order), 1 / len(judge.assets.colors))
        if len(images) > DIRECTIONS:
            pictures = [one.picture for one in items]
            rows["Fréchet distance to the real pictures"] = judge.distance(seen, pictures)
        out[held] = rows
    return out

