"""Requests for pictures, and what is said that asks for none: the frozen LLM reads both once.

What it has in mind behind a request is what the generator draws from; what tells the two apart are the rows of the
signal tokens, which are fitted to it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.data.collate import collate
from mmjax.data.contracts import Batch
from mmjax.recipes.demo.assets import Picture
from mmjax.recipes.demo.questions import Asker, article, question_record
from mmjax.recipes.demo.system import System
from mmjax.train.features import Predictions, cache_predictions
from mmjax.train.new_rows import fit_new_rows

PORT = "image_out"
# The first one is asked in evaluation, and most of the requests that are read have it.
WORDINGS = (
    "Draw {}.",
    "Please draw {}.",
    "Paint {}.",
    "Show me a picture of {}.",
    "Can you draw {}?",
    "draw {}",
    "I want a picture of {}.",
    "Please paint {}!",
)
# What nobody wants a picture for.
TALK = (
    "What is {}?",
    "Tell me about {}.",
    "Who would want {}?",
    "Write a sentence about {}.",
    "What colour is {}?",
    "Where would I find {}?",
    "I have seen {}.",
    "Is {} an animal?",
)


def named(picture: Picture) -> str:
    """ "a blue frog"."""
    return f"{article(picture.label)} {picture.label}"


def draw_record(picture: Picture, wording: int = 0) -> dict[str, Any]:
    """A conversation of a user who asks for a picture and an assistant that shows it, by its name alone."""
    shown = [{"type": "image", "image": f"{picture.name}.png"}]
    asked = WORDINGS[wording].format(named(picture))
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": shown}]}


def prompt_record(picture: Picture) -> dict[str, Any]:
    """What is asked in evaluation."""
    return prompt_of(draw_record(picture))


def prompt_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the user says first."""
    return {"messages": record["messages"][:1]}


def talk_record(picture: Picture, wording: int = 0) -> dict[str, Any]:
    """A conversation about something, without any picture; the answer is no better than it need be."""
    asked = TALK[wording].format(named(picture))
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{named(picture)}."}]}


def request_records(pictures: Sequence[Picture], random: np.random.Generator) -> list[dict[str, Any]]:
    """One for each picture, a third of them in other wordings than the first."""
    others = random.integers(1, len(WORDINGS), len(pictures))
    chosen = np.where(random.random(len(pictures)) < 1 / 3, others, 0)
    return [draw_record(*pair) for pair in zip(pictures, chosen, strict=True)]


def other_records(
    pictures: Sequence[Picture], features: np.ndarray, asker: Asker, count: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """`count` questions about pictures that are shown, and as many remarks about ones that are not."""
    records = []
    for number in random.integers(len(pictures), size=count):
        asked = asker.questions(pictures[number], random)
        records.append(question_record(asked[random.integers(len(asked))], features[number]))
    for number in random.integers(len(pictures), size=count):
        records.append(talk_record(pictures[number], int(random.integers(len(TALK)))))
    return records


def read(system: System, params: Any, records: Sequence[Mapping[str, Any]], batch_size: int) -> Predictions:
    """What the LLM has in mind where the answers are said, row by row of `records`."""
    processor = system.for_features
    samples = [processor.from_record(record, f"record {number}") for number, record in enumerate(records)]
    # Rows of about the same length together, in few shapes.
    order = np.argsort([len(sample) for sample in samples], kind="stable")

    def batches() -> Iterator[Batch]:
        for start in range(0, len(order), batch_size):
            chosen = [samples[number] for number in order[start : start + batch_size]]
            yield collate(chosen, processor.plan, processor.tokenizer.pad_id or 0, batch_size, shape(chosen))

    def shape(chosen):
        targets = max(int((sample.loss_weights > 0).sum()) for sample in chosen)
        length = -(-max(map(len, chosen)) // 4) * 4
        return dataclasses.replace(processor.plan.bucket(chosen), length=length, targets=targets)

    found = cache_predictions(system.model, params, batches())
    rows = order[found.rows]
    back = np.argsort(rows, kind="stable")
    return Predictions(found.states[back], found.others[back], found.targets[back], rows[back])


def request_states(system: System, requests: Predictions) -> np.ndarray:
    """float32 [n, K, D]: states at the signals, of the requests' predictions.

    Behind a request is said: the first signal token, ..., the last one, the end; all but the first from a signal.
    """
    count = len(system.model.config.signal_tokens[PORT])
    return requests.states.reshape(-1, count + 1, requests.states.shape[-1])[:, 1:]


def with_rows(system: System, params: Mapping[str, Any], parts: Sequence[Predictions], penalty: float) -> Any:
    """Params whose rows of the signal tokens say them where they are to be said."""
    ids = system.model.config.signal_tokens[PORT]
    targets = np.concatenate([part.targets for part in parts])
    targets = np.where(np.isin(targets, ids), targets - ids[0], -1)
    states, others = (np.concatenate([getattr(part, name) for part in parts]) for name in ("states", "others"))
    kernel = fit_new_rows(states, others, targets, len(ids), penalty)
    return {**params, "backbone": {**params["backbone"], "lm_head_new": {"kernel": jnp.asarray(kernel)}}}
