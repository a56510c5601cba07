"""The demo's last part from end to end: what the LLM has in mind, the drawing stage, what it draws, its scores."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import from_dict
from mmjax.recipes.demo.assets import Assets, Picture
from mmjax.recipes.demo.draw_scores import Drawer, Drawn, Judge, score_drawings
from mmjax.recipes.demo.drawing import (
    DrawBatches,
    latents_of,
    pixels,
    start_projector,
    with_drawing,
)
from mmjax.recipes.demo.evaluate import row
from mmjax.recipes.demo.questions import Asker, name_question
from mmjax.recipes.demo.requests import other_records, read, request_records, request_states, with_rows
from mmjax.recipes.demo.system import System
from mmjax.train.loop import train_stage
from mmjax.train.signal_loss import loss_of
from mmjax.train.stage import StageConfig

FEW_STEPS = (1, 4)
TRAINED = 100  # trained captions that are drawn


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What the last part leaves behind.

    Attributes:
        system, params: that see and draw.
        stage: the one that was run.
        scores: by what was asked for.
        drawn: by what was asked for.
        unconditional: uint8 pictures of no prompt.
    """

    system: System
    params: Any
    stage: StageConfig
    scores: dict[str, dict[str, Any]]
    drawn: dict[str, list[Drawn]]
    unconditional: Sequence[np.ndarray]


def learn_to_draw(
    config: Mapping[str, Any],
    system: System,
    params: Any,
    assets: Assets,
    asker: Asker,
    features: Mapping[str, np.ndarray],
    split: str,
    workdir: Path,
    begins: Callable[[str], None],
) -> Drawing:
    """Teaches a model that sees to draw as well, and looks at what it draws.

    Args:
        config: the demo's.
        system, params: after the seeing stages.
        assets: the pictures.
        asker: draws questions, which no picture answers.
        features: name of a picture -> features [N, D] of the encoder.
        split: of the held-out pairs that are drawn.
        workdir: for the stages' folders.
        begins: told what begins.
    """
    own, shown = config["drawing"], assets.of("train")
    training = np.stack([features[picture.name] for picture in shown])
    begins("the LLM's states")
    images = pixels(assets, shown)
    system = with_drawing(system, params, {**own, "seed": config["seed"]}, images)
    random = np.random.default_rng(config["seed"])
    asking = read(system, system.params, request_records(shown, random), own["batch_size"])
    talking = other_records(shown, training, asker, own["signals"]["others"], random)
    talking = read(system, system.params, talking, own["batch_size"])
    params = with_rows(system, system.params, (asking, talking), own["signals"]["penalty"])
    states, latents = request_states(system, asking), latents_of(system, params, images)
    params = start_projector(params, states, latents, own["ridge_penalty"])

    begins("stage draw")
    colored = np.array([picture.color is not None for picture in shown])
    groups = (np.flatnonzero(~colored), np.flatnonzero(colored))
    stage = from_dict(StageConfig, {"name": "draw", "seed": config["seed"], **own["stage"]}, "config.drawing.stage")
    batches = DrawBatches(states, latents, groups, stage.data["recoloured"], stage.batch_size, stage.seed)
    loss = loss_of(system.model, stage.loss_weights)
    params = train_stage(system.model, params, stage, batches, workdir, loss=loss)

    begins("drawings")
    drawer = Drawer(system, params, own["batch_size"], len(own["words"]) + 2, own["guidance_scale"])
    asked = {"pairs": assets.of(split), "trained": some(shown, TRAINED), "nouns": some(assets.of("noun"), TRAINED)}
    judge = Judge(system, params, assets, training, features)
    scores: dict[str, Any] = {}
    drawn: dict[str, list[Drawn]] = {}
    for name, pictures in asked.items():
        made = drawer(pictures, (own["steps"], *FEW_STEPS) if name == "pairs" else (own["steps"],))
        drawn[name] = made[own["steps"]]
        scores |= score_drawings(judge, {name: drawn[name]})
        for steps in FEW_STEPS if name == "pairs" else ():
            scores[f"pairs, {steps} step{'s' * (steps > 1)}"] = score_drawings(judge, {name: made[steps]})[name]
    free = drawer.unconditional(len(asked["pairs"]), own["steps"])
    scores["no prompt"] = {"Fréchet distance to the held-out pairs": judge.apart(free, asked["pairs"])}
    questions = [name_question(picture) for picture in asked["pairs"]]
    scores["pairs"]["draws when asked what it sees"] = row(drawer.draws(questions, features))
    return Drawing(system, params, stage, scores, drawn, free)


def some(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """`count` of them, half of them recoloured where there are such, spread evenly."""
    plain = [picture for picture in pictures if picture.color is None]
    colored = [picture for picture in pictures if picture.color]
    parts = [part for part in (plain, colored) if part]
    return [
        part[index]
        for part in parts
        for index in np.linspace(0, len(part) - 1, min(count // len(parts), len(part))).astype(int)
    ]
