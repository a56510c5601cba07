"""The two stages' batches: cached features of pictures, with their captions or with four questions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.config import check_choice
from mmjax.data.conversation import parse_record
from mmjax.data.pipeline import Pipeline, make_pipeline
from mmjax.data.processor import Processor
from mmjax.data.samples import Sample
from mmjax.data.sources import ListSource
from mmjax.recipes.demo.assets import Picture
from mmjax.recipes.demo.questions import Asker, caption_record, question_record
from mmjax.train.stage import StageConfig


@dataclasses.dataclass(frozen=True)
class MakeSample:
    """(record, name) -> Sample; a record is {"picture": number among `pictures`}.

    Attributes:
        kind: "captions" for stage 1's sentence, "questions" for four questions that share the picture.
        processor: for records that hold features.
        pictures, features: in the same order; features [n, N, D].
        asker, seed: which questions a picture gets; the same ones each time it comes.
    """

    kind: str
    processor: Processor
    pictures: Sequence[Picture]
    features: np.ndarray
    asker: Asker
    seed: int

    def __call__(self, record: Mapping[str, Any], name: str) -> Sample:
        number = record["picture"]
        picture, features = self.pictures[number], self.features[number]
        if self.kind == "captions":
            return self.processor.from_record(caption_record(picture, features), name, mode="plain")
        questions = self.asker.questions(picture, np.random.default_rng((self.seed, number)))
        conversations = [parse_record(question_record(question, features), name) for question in questions]
        samples = [self.processor.sample(conversation) for conversation in conversations]
        return self.processor.plan.share_prefix(samples)


def stage_pipeline(
    stage: StageConfig,
    processor: Processor,
    pictures: Sequence[Picture],
    features: np.ndarray,
    asker: Asker,
    recoloured: float,
) -> Pipeline:
    """Endless batches of one static shape for a stage.

    Args:
        stage: its `data` holds "kind", and the shape: "length" tokens a row and "targets" of them.
        processor: for records that hold features.
        pictures, features: the training pictures.
        asker: draws the questions.
        recoloured: share of recoloured pictures in a batch.
    """
    kind = stage.data["kind"]
    check_choice(f"stage {stage.name!r}: data.kind", kind, ("captions", "questions"))
    # All batches have one shape, with an item a port.
    processor = dataclasses.replace(
        processor,
        lengths=(stage.data["length"],),
        targets=(stage.data["targets"],),
        items={port: (1,) for port in processor.media_tokens},
        too_long="skip",
        grouped=kind == "questions",
    )
    make = MakeSample(kind, processor, pictures, features, asker, stage.seed)
    sources = []
    for name, colored, share in (("emoji", False, 1 - recoloured), ("recoloured emoji", True, recoloured)):
        records = [{"picture": i} for i, picture in enumerate(pictures) if bool(picture.color) is colored]
        sources.append((ListSource(records, name), share))
    return make_pipeline(
        sources,
        make,
        processor.plan,
        stage.batch_size,
        stage.seed,
        fixed_shape=True,
        pad_id=processor.tokenizer.pad_id or 0,
    )
