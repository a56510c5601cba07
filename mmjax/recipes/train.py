"""`mmjax train`: from a config to a trained model directory.

workdir/config.json is the resolved config, workdir/<stage>/ what the training loop keeps of a stage, and
workdir/model the result, an mmjax directory. The same call again resumes where the last one stopped.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmjax.api import Model
from mmjax.config import ConfigError, from_dict
from mmjax.configuration import save_resolved, to_plain
from mmjax.data.collate import collate
from mmjax.data.conversation import REGIONS, Conversation, MediaPart, TextPart, parse_record
from mmjax.data.pipeline import Pipeline, make_pipeline
from mmjax.data.processor import Processor
from mmjax.data.samples import Sample
from mmjax.data.sources import open_source
from mmjax.distributed.mesh import batch_share, make_mesh
from mmjax.distributed.processes import is_main, sync
from mmjax.infer.batch import answer_text, without_answer
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.model import MultimodalLM
from mmjax.pretrained import from_pretrained
from mmjax.recipes.assemble import TrainConfig, assemble, with_code_images
from mmjax.train.loop import run_stages
from mmjax.train.panels import PanelSample
from mmjax.train.signal_loss import loss_of
from mmjax.train.stage import StageConfig

PANEL_SAMPLES = 8
PANEL_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of one stage.

    Attributes:
        path: a source as `mmjax.data.sources.open_source` takes it, or several.
        weights: one for each source: they are mixed in these proportions; () shuffles all records together.
        image_root: the folder that relative image paths start from; None is the folder of the data file.
        mode: "chat" renders the chat template; "plain" is for captions: the media, the answer and a line's
            end, without template and without the words that asked for the caption.
        shuffle: whether each epoch has an order of its own.
        workers: processes that read and decode; 0 is a thread.
        skip_budget: how many bad records may be replaced before the run stops.
    """

    path: str | tuple[str, ...]
    weights: tuple[float, ...] = ()
    image_root: str | None = None
    mode: Literal["chat", "plain"] = "chat"
    shuffle: bool = True
    workers: int = 0
    skip_budget: int = 0

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.paths):
            raise ConfigError(f"{len(self.weights)} weights for {len(self.paths)} paths")

    @property
    def paths(self) -> tuple[str, ...]:
        """The sources, also where there is one."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def root(self) -> str | None:
        """The folder that relative image paths start from."""
        files = [path for path in self.paths if not path.startswith("tfds:")]
        folders = {os.path.dirname(os.path.abspath(path)) for path in files}
        if self.image_root is None and len(folders) > 1:
            raise ConfigError(f"the data lie in {len(folders)} folders: image_root must say where images are")
        return self.image_root if self.image_root is not None or not folders else folders.pop()


def train_from_config(config: ConfigDict | Mapping[str, Any], workdir: str | os.PathLike) -> Model:
    """Runs every stage of a config and writes workdir/model.

    Args:
        config: what `mmjax.configuration.load_config` gives; see `TrainConfig`.
        workdir: made if need be; a run that was stopped goes on in it.

    Returns:
        The trained model.

    Raises:
        ConfigError: a key or value that does not fit, before anything is loaded.
        FileNotFoundError: a checkpoint or data file that does not exist.
        SystemExit: with code 77, after saving, when the run is told to stop (SIGTERM).
    """
    plain = to_plain(config)
    if str(plain.get("name", "")).startswith("demo:"):
        raise ConfigError("configs/demo.py is a program of its own: run `mmjax demo --workdir DIR`, or `make demo`")
    parsed = from_dict(TrainConfig, plain, "config")
    stages = [stage_of(name, fields) for name, fields in parsed.stages.items()]
    if not stages:
        raise ConfigError("config.stages is empty: there is nothing to train")
    data = {stage.name: data_of(stage) for stage in stages}
    for spec in data.values():
        for path in spec.paths:
            open_source(path)
    mesh = make_mesh(parsed.mesh)
    workdir = Path(workdir)
    if is_main():
        save_resolved(plain, workdir / "config.json")
    sync("config")

    kept = {}
    if parsed.from_pretrained is not None:
        start = from_pretrained(parsed.from_pretrained, parsed.dtype, parsed.param_dtype, mesh)
        if not isinstance(start, Model):
            raise ConfigError(f"config.from_pretrained: {parsed.from_pretrained} holds no language model")
        model = MultimodalLM(start.config, parsed.dtype, parsed.param_dtype, parsed.remat)
        params, processor = start.params, start.need_processor("training on text")
        processor = with_code_images(processor, start.config, parsed.processor)
        kept = {"generation": start.generation, "hf_config": start.hf_config}
    else:
        model, params, processor = assemble(parsed, mesh)

    def pipeline(stage: StageConfig) -> Pipeline:
        return make_stage_pipeline(stage, data[stage.name], processor, mesh)

    for stage in stages:
        panel = None
        if stage.panel_every and jax.process_count() == 1:
            panel = make_panel(model, processor, data[stage.name])
        loss = loss_of(model, stage.loss_weights)
        params = run_stages(model, params, [stage], pipeline, workdir, mesh=mesh, panel=panel, loss=loss)
    trained = Model(model.config, params, processor, parsed.dtype, **kept)
    trained.save_pretrained(workdir / "model", format="mmjax")
    if is_main():
        print(f"trained model in {workdir / 'model'}; talk to it: mmjax chat {workdir / 'model'}", flush=True)
    return trained


def stage_of(name: str, fields: Mapping[str, Any]) -> StageConfig:
    """The StageConfig of `config.stages.<name>`.

    Raises:
        ConfigError: naming the key under config.stages.
    """
    return from_dict(StageConfig, {"name": name, **fields}, f"config.stages.{name}")


def data_of(stage: StageConfig) -> DataConfig:
    """The DataConfig of a stage.

    Raises:
        ConfigError: naming the key under config.stages.<name>.data; no path.
    """
    where = f"config.stages.{stage.name}.data"
    if stage.data.get("path") is None:
        raise ConfigError(f"{where}.path is not set: add --{where}.path=FILE.json (or .jsonl, .array_record)")
    return from_dict(DataConfig, stage.data, where)


def make_stage_pipeline(stage: StageConfig, data: DataConfig, processor: Processor, mesh: Mesh) -> Pipeline:
    """The pipeline of one stage: this process's share of its batches."""
    index, count = batch_share(mesh) if jax.process_count() > 1 else (0, 1)
    return make_pipeline(
        list(zip(data.paths, data.weights, strict=True)) if data.weights else list(data.paths),
        functools.partial(to_sample, processor=processor, root=data.root, mode=data.mode),
        processor.plan,
        stage.batch_size,
        stage.seed,
        shuffle=data.shuffle,
        workers=data.workers,
        process_index=index,
        process_count=count,
        skip_budget=data.skip_budget,
        pad_id=processor.tokenizer.pad_id or 0,
    )


def to_sample(
    record: Mapping[str, Any], name: str, processor: Processor, root: str | None, mode: str
) -> Sample:
    """One record as a planned sample; see `DataConfig.mode`."""
    conversation = parse_record(record, name, root)
    return processor.sample(as_caption(conversation) if mode == "plain" else conversation, mode=mode)


def as_caption(conversation: Conversation) -> Conversation:
    """The media of the questions, and the answers with a line's end (Liu et al., 2023, pre-training)."""
    messages = []
    for message in conversation.messages:
        if message.role == "assistant":
            text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
            parts = (TextPart(text.strip() + "\n"),)
        else:
            parts = tuple(part for part in message.parts if isinstance(part, MediaPart))
        if parts:
            messages.append(dataclasses.replace(message, parts=parts))
    return dataclasses.replace(conversation, messages=tuple(messages))


def make_panel(
    model: MultimodalLM, processor: Processor, data: DataConfig
) -> Callable[[int, Any], list[PanelSample]]:
    """A function (step, params) -> greedy answers to the first question of the first few records.

    Records that cannot be read are left out: the pipeline counts and reports them.
    """
    source = open_source(data.paths[0])
    prompts = []
    for index in range(min(len(source), 4 * PANEL_SAMPLES)):
        try:
            prompt, truth = first_exchange(parse_record(source[index], source.name(index), data.root))
            asked = as_caption(prompt) if data.mode == "plain" else prompt
            sample = processor.sample(asked, add_generation_prompt=data.mode == "chat", mode=data.mode)
        except (ValueError, OSError):
            continue
        prompts.append((prompt, truth, sample))
        if len(prompts) == PANEL_SAMPLES:
            break
    eos = processor.tokenizer.eos_id
    options = GenerateOptions(max_new_tokens=PANEL_TOKENS, stop_ids=() if eos is None else (eos,))
    programs = Programs(model, unstack=False)

    def panel(step: int, params: Any) -> list[PanelSample]:
        if not prompts:
            return []
        batch = collate([sample for *_, sample in prompts], processor.plan)
        out = generate(model, params, batch, options, programs)
        answers = [
            answer_text(processor.tokenizer, tokens[:length], options)
            for tokens, length in zip(out.tokens, out.lengths, strict=True)
        ]
        return [
            PanelSample(_first_image(prompt, processor), _words(prompt), truth, answer.strip())
            for (prompt, truth, _), answer in zip(prompts, answers, strict=True)
        ]

    return panel


def first_exchange(conversation: Conversation) -> tuple[Conversation, str]:
    """The conversation up to the first answer, and that answer ("" if there is none)."""
    messages = conversation.messages
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    cut = dataclasses.replace(conversation, messages=messages[: answers[0] + 1] if answers else messages)
    prompt, truth = without_answer(cut)
    return prompt, (truth or "").strip()


def _words(conversation: Conversation) -> str:
    parts = conversation.messages[-1].parts
    return " ".join(part.text.strip() for part in parts if isinstance(part, TextPart))


def _first_image(conversation: Conversation, processor: Processor) -> np.ndarray | None:
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, MediaPart) and part.port in processor.images and part.port not in REGIONS:
                return np.asarray(processor.images[part.port].open(part.source))
    return None
