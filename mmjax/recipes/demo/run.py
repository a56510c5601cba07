"""The demo from end to end: fetch, look, regress, train twice, ask, write down, save, export."""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mmjax.api import Model
from mmjax.config import from_dict
from mmjax.configuration import save_resolved, to_plain
from mmjax.memory import release_memory
from mmjax.model import MultimodalLMConfig
from mmjax.pretrained import from_pretrained
from mmjax.recipes.demo import evaluate
from mmjax.recipes.demo.answers import Answerer
from mmjax.recipes.demo.assets import Assets, Picture, load_assets
from mmjax.recipes.demo.draw import learn_to_draw
from mmjax.recipes.demo.questions import (
    Asker,
    Question,
    caption_question,
    noun_questions,
    pair_questions,
)
from mmjax.recipes.demo.report import write_report
from mmjax.recipes.demo.summary import Results, page
from mmjax.recipes.demo.system import PORT, System, build, start_from_ridge
from mmjax.recipes.demo.training_data import stage_pipeline
from mmjax.recipes.demo.weights import cache_dir
from mmjax.train.features import cache_features
from mmjax.train.loop import train_stage
from mmjax.train.metrics import read_metrics
from mmjax.train.stage import StageConfig

SCORES, REPORT = "demo_scores.json", "report.html"


class Clock:
    """Says what begins, and keeps how many seconds each part took."""

    def __init__(self):
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", self.began

    def part(self, name: str) -> None:
        """Ends the part before and begins another; "" only ends."""
        release_memory()
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now
        if name:
            print(f"[{now - self.began:4.0f} s] {name}", flush=True)


def run_demo(config: Mapping[str, Any], workdir: Path, split: str = "final") -> dict[str, Any]:
    """Runs everything into `workdir`; the same call again resumes what was cut off.

    Args:
        config: see `configs/demo.py`.
        workdir: gets config.json, a folder for each stage, demo_scores.json, report.html, pictures/, model/
            (an mmjax directory) and backbone/ (transformers layout).
        split: which held-out pairs are asked about, "develop" or "final".

    Returns:
        What demo_scores.json holds.
    """
    clock, config = Clock(), to_plain(config)
    workdir.mkdir(parents=True, exist_ok=True)
    save_resolved(config, workdir / "config.json")
    keep_compiled()

    clock.part("pretrained parts")
    system = build(config)
    clock.part("pictures and their features")
    asker = Asker(load_assets())
    assets = limited(load_assets(), config["data"]["pictures"])
    features = look(system, assets, ("train", "noun", split))
    shown = assets.of("train")
    training = np.stack([features[picture.name] for picture in shown])
    clock.part("ridge regressions")
    labels = [picture.label for picture in shown]
    params = start_from_ridge(system, training, labels, config["ridge_penalty"])

    answerer = Answerer(system.model, system.for_features, features, **config["evaluation"])
    scores: dict[str, Any] = {}
    stages = [
        from_dict(StageConfig, {"name": name, "seed": config["seed"], **stage}, f"config.stages.{name}")
        for name, stage in config["stages"].items()
    ]
    for stage in stages:
        clock.part(f"stage {stage.name}")
        pipeline = stage_pipeline(
            stage, system.for_features, shown, training, asker, config["data"]["recoloured"]
        )
        params = train_stage(system.model, params, stage, pipeline, workdir)
        clock.part("questions")
        captions = stage.data["kind"] == "captions"
        ask = ask_captions if captions else ask_everything
        scores[stage.name], answered = ask(answerer, params, assets, split)
        print(table(scores[stage.name]), flush=True)
    del answerer

    clock.part("saving")
    seeing = Model(system.model.config, params, system.processor, generation=generation(system))
    export_backbone(seeing, workdir / "backbone")
    drawing = learn_to_draw(config, system, params, assets, asker, features, split, workdir, clock.part)
    scores["draw"], stages = drawing.scores, [*stages, drawing.stage]
    print(table(drawing.scores), flush=True)
    clock.part("saving")
    system = drawing.system
    options = generation(system, config["drawing"])
    model = Model(system.model.config, drawing.params, system.processor, generation=options)
    model.save_pretrained(workdir / "model", format="mmjax")
    examples = save_pictures(assets, split, workdir / "pictures")
    clock.part("")
    record = {
        "split": split,
        "seed": config["seed"],
        "scores": scores,
        "goals": check_goals(config["goals"], scores),
        "seconds": {name: round(value, 1) for name, value in clock.seconds.items()},
        "total_seconds": round(time.perf_counter() - clock.began, 1),
        "peak_memory_gb": round(peak_memory(), 2),
    }
    (workdir / SCORES).write_text(json.dumps(record, indent=2) + "\n")
    curves = {stage.name: read_metrics(workdir / stage.name / "metrics.jsonl") for stage in stages}
    tables = {stage.name: (workdir / stage.name / "freeze_table.txt").read_text() for stage in stages}
    results = Results(
        record, answered, curves, tables, assets, examples, workdir, drawing.drawn, drawing.unconditional
    )
    write_report(page(results), workdir / REPORT)
    print(closing(record, workdir, examples), flush=True)
    return record


def keep_compiled() -> None:
    """Compiled programs are kept beside the weights, so that a second run does not compile again."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def limited(assets: Assets, count: int | None) -> Assets:
    """The assets with at most `count` pictures of each split, spread evenly, plain and recoloured alike."""
    if count is None:
        return assets
    chosen: list[Picture] = []
    for split in ("train", "noun", "develop", "final"):
        plain = [picture for picture in assets.of(split) if picture.color is None]
        colored = [picture for picture in assets.of(split) if picture.color]
        parts = [part for part in (plain, colored) if part]
        for part in parts:
            picks = np.linspace(0, len(part) - 1, min(count // len(parts), len(part))).astype(int)
            chosen += [part[index] for index in picks]
    return dataclasses.replace(assets, pictures=tuple(chosen))


def look(system: System, assets: Assets, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """Features [N, D] of the pictures of some splits by name; the encoder is frozen, so once is enough."""
    process = system.processor.images[PORT]
    pictures = [picture for picture in assets.pictures if picture.split in splits]
    images = (process(assets.pixels(picture), picture.name) for picture in pictures)
    features = cache_features(system.model, system.params, PORT, images, batch_size=16)
    return {picture.name: row for picture, row in zip(pictures, features, strict=True)}


def ask_captions(
    answerer: Answerer, params: Any, assets: Assets, split: str
) -> tuple[dict[str, Any], list[tuple[Question, str]]]:
    """After stage 1: the sentence completed for the held-out pairs and nouns."""
    rules = {"pairs": evaluate.pair_rules(tuple(assets.colors)), "nouns": evaluate.NOUN_RULES}
    scores = {}
    for name, held in (("pairs", split), ("nouns", "noun")):
        questions = {"name": [caption_question(picture) for picture in assets.of(held)]}
        answers = {"name": answerer.complete(params, questions["name"])}
        blind = shuffled_answers(answers)
        scores[name] = evaluate.score(rules[name], questions, answers, blind)
    return scores, []


def ask_everything(
    answerer: Answerer, params: Any, assets: Assets, split: str
) -> tuple[dict[str, Any], list[tuple[Question, str]]]:
    """After stage 2: all questions on the held-out pairs and nouns; also the questions with their answers."""
    rules = {"pairs": evaluate.pair_rules(tuple(assets.colors)), "nouns": evaluate.NOUN_RULES}
    questions = {"pairs": pair_questions(assets, split), "nouns": noun_questions(assets)}
    answers: dict[str, dict[str, list[str]]] = {}
    blind: dict[str, dict[str, list[str]]] = {}
    for held, lists in questions.items():
        free = {name: items for name, items in lists.items() if items[0].kind != "exists"}
        answers[held] = {name: answerer.answer(params, items) for name, items in free.items()}
        # Greedy answers to one and the same question depend on the picture alone.
        blind[held] = shuffled_answers(answers[held])
    # Questions to be answered by yes or no are asked all together, so that they share pictures and programs.
    places = [
        (held, name) for held, lists in questions.items() for name in lists if name not in answers[held]
    ]
    asked = [question for held, name in places for question in questions[held][name]]
    others = {}
    for held in questions:
        names = list(dict.fromkeys(q.picture.name for items in questions[held].values() for q in items))
        others |= {name: names[at] for name, at in zip(names, evaluate.shuffled(len(names)), strict=True)}
    for target, shown in ((answers, None), (blind, [others[q.picture.name] for q in asked])):
        words = iter(answerer.first_words(params, asked, shown))
        for held, name in places:
            target[held][name] = [next(words) for _ in questions[held][name]]
    scores = {
        held: evaluate.score(rules[held], questions[held], answers[held], blind[held]) for held in questions
    }
    answered = [
        pair
        for held in questions
        for name in questions[held]
        for pair in zip(questions[held][name], answers[held][name], strict=True)
    ]
    return scores, answered


def shuffled_answers(answers: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each list the answers that were given to other pictures."""
    return {name: [items[at] for at in evaluate.shuffled(len(items))] for name, items in answers.items()}


def table(scores: Mapping[str, Any]) -> str:
    """Scores as aligned text."""
    lines = []
    for held, rows in scores.items():
        for metric, row in rows.items():
            spread = f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
            blind = f"blind {row['blind']:.3f}" if "blind" in row else ""
            constant = f"constant {row['constant']:.3f}" if "constant" in row else ""
            lines.append(f"  {held}  {metric:<40}{row['value']:.3f} {spread}  {blind}  {constant}".rstrip())
    return "\n".join(lines)


def check_goals(goals: Sequence[Sequence[Any]], scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each goal (stage, held-out what, metric, field, lowest, highest) with what was reached."""
    checked = []
    for stage, held, metric, field, low, high in goals:
        value = scores.get(stage, {}).get(held, {}).get(metric, {}).get(field)
        met = value is not None and low <= value <= high
        name = f"{stage}: {held}, {metric}, {field}"
        checked.append({"goal": name, "lowest": low, "highest": high, "value": value, "met": met})
    return checked


def generation(system: System, drawing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How replies of the saved model end, and how it draws."""
    tokenizer = system.processor.tokenizer
    out = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    if drawing is not None:
        out |= {"num_inference_steps": drawing["steps"], "guidance_scale": drawing["guidance_scale"]}
    return out


def export_backbone(model: Model, directory: Path) -> None:
    """Writes the backbone with its LoRA merged in transformers layout, and reads it back.

    No class of transformers holds this encoder, so the whole model has no such layout.

    Raises:
        RuntimeError: a leaf that was read back differs.
    """
    config = MultimodalLMConfig(model.config.backbone)
    processor = dataclasses.replace(model.processor, images={}, media_tokens={}, placeholders={})
    backbone = Model(config, {"backbone": model.params["backbone"]}, processor, generation=model.generation)
    backbone.save_pretrained(directory, format="huggingface")
    again = from_pretrained(directory).params
    same = jax.tree.map(np.array_equal, backbone.params, again)
    changed = [jax.tree_util.keystr(path) for path, equal in jax.tree.leaves_with_path(same) if not equal]
    if changed:
        raise RuntimeError(f"{directory}: read back, these leaves differ: {', '.join(changed)}")


def save_pictures(assets: Assets, split: str, folder: Path, count: int = 8) -> list[Path]:
    """Writes a few held-out pictures as PNG, to chat about; their paths."""
    folder.mkdir(exist_ok=True)
    pictures, paths = assets.of(split), []
    for index in np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int):
        picture = pictures[index]
        paths.append(folder / f"{picture.label.replace(' ', '_')}.png")
        Image.fromarray(assets.pixels(picture)).save(paths[-1])
    return paths


def peak_memory() -> float:
    """The most memory that this process has held so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def closing(record: Mapping[str, Any], workdir: Path, examples: Sequence[Path]) -> str:
    """The last words on the terminal."""
    missed = [goal for goal in record["goals"] if not goal["met"]]
    lines = [f"{record['total_seconds']:.0f} s, {record['peak_memory_gb']:.1f} GB at most"]
    if record["goals"]:
        lines[0] += f"; {len(record['goals']) - len(missed)} of {len(record['goals'])} goals met"
    for goal in missed:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3f}"
        lines.append(f"  missed: {goal['goal']} is {value}, wanted {goal['lowest']} to {goal['highest']}")
    lines += [
        f"scores       {workdir / SCORES}",
        f"report       {workdir / REPORT}",
        f"the model    {workdir / 'model'}",
        f"its backbone {workdir / 'backbone'} (transformers layout)",
        f"Talk to it:  mmjax chat {workdir / 'model'}",
    ]
    if examples:
        lines.append(f"  then       /image {examples[0]}   and   What colour is it?")
    return "\n".join(lines)
