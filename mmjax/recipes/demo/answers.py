"""The model's answers to lists of questions: decoded freely, or the first token where that is the answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.collate import collate
from mmjax.data.contracts import Batch
from mmjax.data.conversation import Conversation, parse_record
from mmjax.data.processor import Processor
from mmjax.data.samples import Bucket, Sample
from mmjax.infer.batch import answer_text, without_answer
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.model import MultimodalLM
from mmjax.recipes.demo.questions import CAPTION_END, Question, caption_record, question_record


class Answerer:
    """Greedy answers of one model; programs compile once, whatever params they are called with.

    Args:
        model: the model.
        processor: for records that hold features.
        features: name of a picture -> features [N, D].
        batch_size: rows of every call; lists are filled up to it.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        model: MultimodalLM,
        processor: Processor,
        features: Mapping[str, np.ndarray],
        batch_size: int,
        max_new_tokens: int,
    ):
        self.model, self.processor, self.features = model, processor, features
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.programs = Programs(model)
        self._first = jax.jit(self._first_tokens)

    def complete(self, params: Any, questions: Sequence[Question]) -> list[str]:
        """How the sentence of stage 1 goes on, up to its full stop."""
        stops = tuple(self.processor.tokenizer.encode(CAPTION_END, continued=True))
        return self._generate(params, [self._prompt(q, self._shown(q)) for q in questions], stops)

    def answer(self, params: Any, questions: Sequence[Question]) -> list[str]:
        """Free answers in a chat."""
        stops = (self.processor.tokenizer.eos_id,)
        return self._generate(params, [self._prompt(q, self._shown(q)) for q in questions], stops)

    def first_words(
        self, params: Any, questions: Sequence[Question], shown: Sequence[str] | None = None
    ) -> list[str]:
        """The first token of each free answer, which is all of "Yes" and "No".

        Questions that are shown the same picture share a row, so it is read once.

        Args:
            shown: names of the pictures to show in place of the questions' own, for the blind baseline.
        """
        names = [question.picture.name for question in questions] if shown is None else shown
        by_name: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            by_name.setdefault(name, []).append(index)
        rows, plan = list(by_name.values()), self.processor.plan
        samples = [plan.share_prefix([self._prompt(questions[i], names[i]) for i in row]) for row in rows]
        bucket, most = dataclasses.replace(plan.bucket(samples), grouped=True), max(map(len, rows))
        answers = [""] * len(questions)
        for start in range(0, len(rows), self.batch_size):
            stop = start + self.batch_size
            ids = self._first_of(params, samples[start:stop], bucket, most)
            for row, found in zip(rows[start:stop], ids, strict=False):
                for index, token in zip(row, found, strict=False):
                    answers[index] = self.processor.tokenizer.decode([int(token)])
        return answers

    @staticmethod
    def _shown(question: Question) -> str:
        return question.picture.name

    def _prompt(self, question: Question, shown: str) -> Sample:
        features = self.features[shown]
        if not question.text:
            record = caption_record(question.picture, features)
            return self.processor.sample(self._ask(record, shown), mode="plain")
        record = question_record(question, features)
        return self.processor.sample(self._ask(record, shown), add_generation_prompt=True)

    @staticmethod
    def _ask(record: Mapping[str, Any], name: str) -> Conversation:
        return without_answer(parse_record(record, name))[0]

    def _collate(self, samples: Sequence[Sample], bucket: Bucket | None = None) -> Batch:
        filled = [*samples, *[samples[-1]] * (self.batch_size - len(samples))]
        return collate(filled, self.processor.plan, self.processor.tokenizer.pad_id or 0, bucket=bucket)

    def _generate(self, params: Any, samples: Sequence[Sample], stops: tuple[int, ...]) -> list[str]:
        pad_id = self.processor.tokenizer.pad_id or 0
        options = GenerateOptions(max_new_tokens=self.max_new_tokens, stop_ids=stops, pad_id=pad_id)
        answers = []
        for start in range(0, len(samples), self.batch_size):
            chunk = samples[start : start + self.batch_size]
            out = generate(self.model, params, self._collate(chunk), options, self.programs)
            for tokens, length in zip(out.tokens[: len(chunk)], out.lengths, strict=False):
                answers.append(answer_text(self.processor.tokenizer, tokens[:length], options).strip())
        return answers

    def _first_of(
        self, params: Any, samples: Sequence[Sample], bucket: Bucket, most: int
    ) -> np.ndarray:
        """int32 [rows, most]: the token behind each branch of each sample."""
        ends = np.zeros((self.batch_size, most), np.int32)
        for row, sample in enumerate(samples):
            group = np.ones(len(sample)) if sample.attend_group is None else sample.attend_group
            branches = np.unique(group[group > 0])
            ends[row, : len(branches)] = [np.flatnonzero(group == branch)[-1] for branch in branches]
        batch = self._collate(samples, bucket)
        text = dataclasses.replace(batch.text, loss_weights=None, loss_positions=None)
        return np.asarray(self._first(params, batch.replace(texts={"text": text}), ends))

    def _first_tokens(self, params: Any, batch: Batch, ends: jax.Array) -> jax.Array:
        media = self.model.encode_media(params, batch.media)
        hidden = self.model.forward(params, batch.texts, media)
        hidden = jnp.take_along_axis(hidden, ends[:, :, None], axis=1)
        return jnp.argmax(self.model.logits(params, hidden), axis=-1)
