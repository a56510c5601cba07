"""What the demo's model draws when it is asked, and how right that is, as the frozen image encoder sees it.

The whole path is asked: prompt, LLM, its own decision to write a signal, output projector, generator. A prompt whose
answer has no picture counts as a picture that is wrong.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.collate import collate
from mmjax.data.contracts import Batch
from mmjax.data.conversation import parse_record
from mmjax.data.samples import Sample
from mmjax.generators.schedules import make_steps
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.infer.media import DrawOptions, MediaPrograms, generate_media
from mmjax.recipes.demo.assets import Assets, Picture
from mmjax.recipes.demo.evaluate import row, shuffled
from mmjax.recipes.demo.questions import Question, question_record
from mmjax.recipes.demo.requests import PORT, prompt_of, prompt_record
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
        self.batch_size, self.guidance_scale = batch_size, guidance_scale
        tokenizer = system.processor.tokenizer
        self.options = GenerateOptions(
            max_new_tokens=max_new_tokens, stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id or 0
        )
        self.programs, self.drawing = Programs(system.model), MediaPrograms(system.model)

    def __call__(self, pictures: Sequence[Picture], steps: Sequence[int]) -> dict[int, list[Drawn]]:
        """What the model draws when it is asked for these pictures once, in several numbers of steps."""
        samples = self._samples([prompt_record(picture) for picture in pictures])
        made: dict[int, list[np.ndarray | None]] = {count: [] for count in steps}
        for batch, rows, real in self._batches(samples):
            answers, images = generate_media(
                self.system.model, self.params, batch, self.options, self._draw(steps[0]), self.programs,
                self.drawing, rows, real,
            )  # fmt: skip
            for count in steps:
                if count != steps[0]:
                    images = self.drawing(self.params, batch, answers, self._draw(count), rows[:real])
                made[count] += [as_bytes(row[0]) if row else None for row in images[PORT]]
        return {
            count: [Drawn(picture, image) for picture, image in zip(pictures, images, strict=True)]
            for count, images in made.items()
        }

    def draws(self, questions: Sequence[Question], features: Mapping[str, np.ndarray]) -> list[bool]:
        """Whether it begins to draw where it is asked about what it sees."""
        records = [question_record(question, features[question.picture.name]) for question in questions]
        begins, found = self.system.model.config.signal_tokens[PORT][0], []
        for batch, rows, real in self._batches(self._samples([prompt_of(record) for record in records])):
            answers = generate(self.system.model, self.params, batch, self.options, self.programs, rows=np.array(rows))
            tokens = np.asarray(answers.tokens)[:real]
            said = np.arange(tokens.shape[1]) < np.asarray(answers.lengths)[:real, None]
            found += ((tokens == begins) & said).any(axis=1).tolist()
        return found

    def _draw(self, steps: int) -> DrawOptions:
        return DrawOptions(num_inference_steps=steps, guidance_scale=self.guidance_scale)

    def _samples(self, records: Sequence[Mapping[str, Any]]) -> list[Sample]:
        return [
            self.system.for_features.sample(parse_record(record, f"request {number}"), add_generation_prompt=True)
            for number, record in enumerate(records)
        ]

    def _batches(self, samples: Sequence[Sample]) -> Iterator[tuple[Batch, range, int]]:
        """Batches of one shape, the numbers of their rows, and how many of these are real."""
        processor, size = self.system.for_features, self.batch_size
        length = -(-max(map(len, samples)) // 4) * 4
        bucket = dataclasses.replace(processor.plan.bucket(samples), length=length)
        for start in range(0, len(samples), size):
            chunk = samples[start : start + size]
            filled = [*chunk, *[chunk[-1]] * (size - len(chunk))]
            batch = collate(filled, processor.plan, self.options.pad_id, bucket=bucket)
            yield batch, range(start, start + size), len(chunk)

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

