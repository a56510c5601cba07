"""What the demo's page says: the results of a run as a `Report`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.recipes.demo import evaluate
from mmjax.recipes.demo.assets import Assets
from mmjax.recipes.demo.draw_scores import Drawn
from mmjax.recipes.demo.questions import Question
from mmjax.recipes.demo.report import Answered, Curve, Report, Scores, Sheet

SAMPLES = 40
DRAWINGS = 24
TITLES = {
    "pairs": "pairs of colour and object that were never shown",
    "nouns": "nouns that were never shown",
    "trained": "captions of training pictures",
    "no prompt": "no prompt at all",
}
UNASKED_NOTE = "What the generator draws when nothing is asked for, and how far that is from the pictures above."
DRAWING_NOTE = (
    "Left what the model drew when it was asked to, right the real picture, which it was not shown. A drawing is right "
    "when the frozen encoder finds the real picture most like it among a hundred; its colour, when it is nearest to "
    "that painting of the object among eight. Blind is the drawing of another prompt."
)
NOTE = (
    "Blind is the same model shown the picture of another question. The constant answer is the one that "
    "would have scored best if it were always given: the majority, or chance."
)
LIMITS = (
    "The pairs test recombination: both the colour and the object were seen, never together. It is no "
    "claim about recognising anything in any colour: in a prototype, objects seen only in their natural "
    "colour were named right in a new one 12 to 18 % of the time.",
    "Nouns that were never shown are mostly named wrongly; what carries over is the kind of thing.",
    "The pictures are clean 64 px drawings on white. Photographs will be misread.",
    "What is drawn starts from a sketch by linear regression, which the diffusion steps finish: it recombines colours "
    "and objects that it has seen, and has little idea of what it has not. It was taught with eight wordings of "
    "requests: what other words ask for is drawn less well.",
)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run has found.

    Attributes:
        record: what demo_scores.json holds.
        answered: questions with the answers after the last stage.
        curves: stage -> lines of its metrics.jsonl.
        tables: stage -> its table of who is trained.
        assets: the pictures.
        examples: pictures to chat about.
        workdir: where everything lies.
        drawn: by what was asked for, with drawings.
        unconditional: uint8 pictures that were drawn without a prompt.
    """

    record: Mapping[str, Any]
    answered: Sequence[tuple[Question, str]]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    tables: Mapping[str, str]
    assets: Assets
    examples: Sequence[Path]
    workdir: Path
    drawn: Mapping[str, Sequence[Drawn]] = dataclasses.field(default_factory=dict)
    unconditional: Sequence[np.ndarray] = ()


def page(results: Results) -> Report:
    """The report of a run."""
    record = results.record
    scores = [
        Scores(f"After stage {stage}: {title(held)}", note(stage, held), rows)
        for stage, parts in reversed(record["scores"].items())
        for held, rows in parts.items()
    ]
    goals = record["goals"]
    facts = [
        ("held-out colours", f"the {record['split']} ones"),
        ("seed", str(record["seed"])),
        ("time", f"{record['total_seconds'] / 60:.1f} min"),
        ("memory at most", f"{record['peak_memory_gb']:.1f} GB"),
        ("goals met", f"{sum(goal['met'] for goal in goals)} of {len(goals)}"),
    ]
    facts += [(f"seconds: {name}", f"{value:.0f}") for name, value in record["seconds"].items()]
    model, example = results.workdir / "model", results.examples[0] if results.examples else "PICTURE"
    return Report(
        title="A small language model learns to see and to draw",
        summary=(
            "SmolLM2-135M-Instruct was given an image encoder it had never met (EfficientNet-Lite0). A "
            "projector between the two, then low-rank adapters, learned from emoji, half of them recoloured "
            "by code. Then it was given new words that stand for a picture, and a small generator behind them. The "
            "scores below are on what training never showed."
        ),
        facts=facts,
        scores=scores,
        samples=samples(results),
        sheets=sheets(results),
        curves=[curve(stage, lines) for stage, lines in results.curves.items() if lines],
        tables=[(f"Who was trained: stage {stage}", text) for stage, text in results.tables.items()],
        limits=LIMITS,
        commands=[
            ("Talk to the trained model, and show it a picture:", f"mmjax chat {model}\n/image {example}"),
            (
                "Let it draw; pictures lie beside the answers:",
                f"echo '{DRAW}' > draw.jsonl\nmmjax generate {model} -i draw.jsonl -o answers.jsonl",
            ),
            ("Answer many records:", f"mmjax generate {model} -i questions.jsonl -o answers.jsonl"),
            ("Again with another seed:", "python -m mmjax.recipes.demo --workdir runs/seed1 --seed 1"),
        ],
    )


DRAW = '{"messages": [{"role": "user", "content": "Draw a blue frog."}]}'


def note(stage: str, held: str) -> str:
    """What a table's columns and metrics are."""
    return NOTE if stage != "draw" else UNASKED_NOTE if held == "no prompt" else DRAWING_NOTE


def title(held: str) -> str:
    """What scores are of: "pairs, 4 steps" is a part and how it was drawn."""
    name, _, how = held.partition(", ")
    return TITLES[name] + (f", in {how}" if how else "")


def sheets(results: Results) -> list[Sheet]:
    """Contact sheets of what was drawn."""
    out = []
    for held, items in results.drawn.items():
        picks = np.linspace(0, len(items) - 1, min(DRAWINGS, len(items))).astype(int)
        rows = [(items[i].picture.label, items[i].image, results.assets.pixels(items[i].picture)) for i in picks]
        out.append(Sheet(f"Drawn: {title(held)}", DRAWING_NOTE, rows))
    if len(results.unconditional):
        rows = [("no prompt", image, None) for image in results.unconditional[: DRAWINGS // 2]]
        out.append(Sheet("Drawn: no prompt at all", UNASKED_NOTE, rows))
    return out


def curve(stage: str, lines: Sequence[Mapping[str, Any]]) -> Curve:
    """The training loss of a stage."""
    lines = [line for line in lines if line.get("loss") is not None]
    return Curve(f"Loss, stage {stage}", [line["step"] for line in lines], [line["loss"] for line in lines])


def samples(results: Results, count: int = SAMPLES) -> list[Answered]:
    """Answered questions spread evenly over what was asked, three quarters of them on pairs."""
    nouns = [pair for pair in results.answered if pair[0].picture.split == "noun"]
    pairs = [pair for pair in results.answered if pair[0].picture.split != "noun"]
    chosen = []
    for part, share in ((pairs, count * 3 // 4), (nouns, count - count * 3 // 4)):
        picks = np.linspace(0, len(part) - 1, min(share, len(part))).astype(int) if part else []
        chosen += [part[index] for index in picks]
    return [
        Answered(
            results.assets.pixels(question.picture),
            question.text,
            question.answer,
            answer or "(nothing)",
            bool(rule(question)(answer, question)),
        )
        for question, answer in chosen
    ]


def rule(question: Question) -> evaluate.Rule:
    """How the answer to a question is judged."""
    return evaluate.first_word if question.kind in ("exists", "group") else evaluate.exact
