"""Every system of configs/: the shapes and counts of every size, and tiny ones trained on one item of every port."""

import dataclasses
import math
import re
import shlex

import jax
import numpy as np
import pytest

import configs
from mmjax import cli
from mmjax.config import from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.code_images import CodeImages
from mmjax.data.collate import collate
from mmjax.data.contracts import TextStream
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.mask_targets import MaskTargets
from mmjax.data.media_targets import SoundTargets, VideoTargets
from mmjax.data.recipes import Whole
from mmjax.data.region_processor import RegionProcessor
from mmjax.data.regions import Region
from mmjax.data.targets import OUT
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.distributed.rules import shardings
from mmjax.encoders.text import TextEncoderConfig
from mmjax.model import MultimodalLM
from mmjax.paths import flatten, unflatten
from mmjax.recipes.assemble import TrainConfig, byte_tokenizer, fresh_params, make_processor
from mmjax.recipes.train import as_caption, stage_of
from mmjax.train.optimizer import make_optimizer
from mmjax.train.signal_loss import loss_of
from mmjax.train.stage import adapt, multipliers, split
from mmjax.train.step import init_state, make_train_step, state_shardings

SYSTEMS = [name for name in configs.SYSTEMS if name != "demo"]
# What papers or published checkpoints say of the whole, in billions.
PUBLISHED = {
    "llava_1_5:7b": 7.06,
    "llava_1_5:13b": 13.35,
    "llava_next:7b": 7.06,
    "llava_next:13b": 13.35,
    "llava_next:mistral_7b": 7.57,
    "llava_next:34b": 34.75,
    "llava_onevision:0.5b": 0.894,
    "llava_onevision:7b": 8.03,
    "llava_onevision:72b": 73.2,
    "llava_med:v1.5_7b": 7.57,
    "blip_2:opt_2.7b": 3.8,
    "blip_2:opt_6.7b": 7.8,
    "blip_2:flan_t5_xl": 3.94,
    "blip_2:flan_t5_xxl": 12.1,
    "instructblip:vicuna_7b": 7.91,
    "instructblip:vicuna_13b": 14.2,
    "instructblip:flan_t5_xl": 4.02,
    "instructblip:flan_t5_xxl": 12.3,
    "qwen_vl:7b": 9.6,
    "qwen2_vl:2b": 2.21,
    "qwen2_vl:7b": 8.29,
    "qwen2_vl:72b": 73.4,
    "qwen2_5_vl:3b": 3.75,
    "qwen2_5_vl:7b": 8.29,
    "qwen2_5_vl:72b": 73.4,
    "paligemma:3b_224": 2.923,
    "paligemma:2_3b_224": 3.03,
    "gemma3:4b": 4.30,
    "gemma3:12b": 12.19,
    "gemma3:27b": 27.43,
    "internvl:1b": 0.938,
    "internvl:2b": 2.09,
    "internvl:8b": 7.94,
    "fuyu:8b": 9.41,
    "idefics:9b": 8.93,
    "idefics:80b": 80.0,
    "kosmos_2:1.6b": 1.664,
    "palm_e:84b": 84.0,
    "mobilevlm:1.7b": 1.7,
    "mobilevlm:3b": 3.0,
    "mplug_owl:7b": 7.2,
    "video_llava:7b": 7.37,
    "cogvlm:17b": 17.6,
    "cogagent:18b": 18.3,
}
# LLM tokens of one item where every item has as many.
TOKENS = {
    "llava": {"image": 256},
    "llava_1_5": {"image": 576},
    "vila": {"image": 576},
    "mobilevlm": {"image": 144},
    "sphinx": {"image": 256},
    "blip_2": {"image": 32},
    "dlp": {"image": 32},
    "minigpt_v2": {"image": 256},
    "mplug_owl": {"image": 65},
    "kosmos_1": {"image": 64},
    "qwen_vl": {"image": 256},
    "video_chatgpt": {"video": 356},
    "video_llava": {"image": 256, "video": 2056},
    "pandagpt": {"image": 1, "audio": 1},
    "x_llm": {"image": 32, "video": 256},
    "gpt4roi": {"image": 256, "region": 1},
    "osprey": {"image": 1024, "region": 2},
    "ferret": {"image": 576, "region": 1},
    "flamingo": {"image": 64},
    "cogvlm": {"image": 1225},
    "llama_adapter": {"image": 1},
    "kosmos_2": {"image": 64},
    "idefics": {"image": 64},
    "paligemma": {"image": 256},
    "gemma3": {"image": 256},
    "internvl": {"image": 256},
    "videochat": {"image": 32, "video": 256},
    "video_llama": {"video": 32, "audio": 8},
    "x_instructblip": {"image": 32, "video": 160, "audio": 32, "points": 32},
    "mplug_docowl": {"image": 65},
    "palm_e": {"image": 256, "state": 1},
    "ofa": {"image": 576},
    "llama_adapter_v2": {"image": 10},
    "cogagent": {"image": 256, "detail": 6400},
    "lavin": {"image": 6},
    "fromage": {"image": 1},
    "gill": {"image": 4},
    "minigpt_5": {"image": 32},
    "uni_moe": {"image": 576, "video": 256, "audio": 32, "speech": 32},
}
# In `make test`; the others are slow, and have other parts but no other path through the code.
QUICK = ("pandagpt",)


def parsed(spec):
    return from_dict(TrainConfig, to_plain(load_config(spec)))


def size_of(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


SIZES = [f"{name}:{size}" for name in SYSTEMS for size in configs.SYSTEMS[name]["sizes"]]
# Each takes seconds to trace, for it has several towers or a UNet; what they are made of is in others too.
MANY_TOWERS = (
    "chatbridge", "codi_2", "docpedia", "dreamllm", "emu3", "gill", "kosmos_g", "lisa", "minigpt_5", "next_gpt",
    "osprey", "sphinx", "uni_moe", "x_instructblip", "x_llm",
)  # fmt: skip
QUICK_SIZES = [f"{name}:{configs.SYSTEMS[name]['sizes'][0]}" for name in SYSTEMS if name not in MANY_TOWERS]


@pytest.mark.quick(*QUICK_SIZES)
@pytest.mark.parametrize("spec", SIZES)
def test_every_size_has_shapes_and_as_many_parameters_as_published(spec):
    config = parsed(spec)
    model = MultimodalLM(config.model)
    shapes = model.param_shapes()
    if spec in PUBLISHED:
        assert size_of(shapes) == pytest.approx(PUBLISHED[spec] * 1e9, rel=0.02)
    for title, fields in config.stages.items():
        stage = stage_of(title, fields)
        tree = jax.eval_shape(lambda params, stage=stage: adapt(model, params, stage)[1], shapes)
        assert multipliers(tree, stage), title


def test_tables_name_systems():
    assert not {*PUBLISHED} - {*SIZES} and not {*TOKENS} - {*SYSTEMS}


@pytest.mark.parametrize("name", TOKENS)
def test_items_become_as_many_tokens_as_published(name):
    model = parsed(name).model
    assert {port: model.num_tokens(port) for port in TOKENS[name]} == TOKENS[name]


@pytest.mark.parametrize("name", configs.MODULES)
def test_commands_of_the_first_lines_load(name):
    text = configs.MODULES[name].__doc__.replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^\s*(mmjax train .*)$", text, re.M)]
    assert commands or name == "demo"
    for command in commands:
        args, rest = cli.build_parser().parse_known_args(command)
        assert load_config(args.config, cli._overrides(args, rest)).name == args.config


def test_parts_that_papers_count():
    shapes = MultimodalLM(parsed("qwen_vl:7b").model).param_shapes()
    assert size_of(shapes["encoders"]) == pytest.approx(1.9e9, rel=0.03)
    assert size_of(shapes["backbone"]) == pytest.approx(7.7e9, rel=0.01)
    assert size_of(MultimodalLM(parsed("mobilevlm:1.7b").model).param_shapes()["projectors"]) < 20e6
    # What FROMAGe and GILL train, new rows aside: 5.5M and 50M.
    for name, said in (("fromage:6.7b", 5.5e6), ("gill:6.7b", 50e6)):
        shapes = MultimodalLM(parsed(name).model).param_shapes()
        parts = ["projectors/image", "generators/image_out", "output_projectors/image_out"]
        if name.startswith("gill"):
            parts = [parts[0], "generators/retrieve", "output_projectors/retrieve", parts[2]]
        trained = sum(size_of(shapes[part][port]) for part, port in (part.split("/") for part in parts))
        assert trained == pytest.approx(said, rel=0.01)
    connectors = {name: parsed(f"mm1:{name}").model for name in configs.SYSTEMS["mm1"]["sizes"] if name != "tiny"}
    counts = {name: model.num_tokens("image") for name, model in connectors.items()}
    assert len(counts) == 6 and all(name.endswith(f"_{count}") for name, count in counts.items())


def source_of(port, processor, model):
    """Something to open for a port: an image, frames, samples, or an array as the encoder takes it."""
    rng = np.random.default_rng(0)
    recipe = processor.images.get(port)
    if isinstance(recipe, CodeImages):
        return rng.integers(0, 256, (31, 44, 3), np.uint8)
    if recipe is None:
        return rng.normal(size=model.encoders[port].item_shape).astype(np.float32)
    if port == "audio":
        return rng.normal(size=9000).astype(np.float32) / 9
    if port in ("points", "state"):
        return rng.random(recipe.item_shape).astype(np.float32)
    if isinstance(recipe, RegionProcessor):
        return Region(box=(0.2, 0.3, 0.7, 0.9))
    frames = rng.integers(0, 256, (6, 31, 44, 3), np.uint8)
    return frames if isinstance(recipe, Whole) else frames[0]


def made(port, processor, number):
    """What a model is to make at a port, each time something else."""
    rng, recipe = np.random.default_rng(1 + number), processor.images[port]
    if isinstance(recipe, MaskTargets):
        return MediaPart(port, Region(box=(0.1, 0.2, 0.7, 0.6)))
    if isinstance(recipe, SoundTargets):
        return MediaPart(port, rng.normal(size=900).astype(np.float32) / 9)
    frames = rng.integers(0, 256, (5, 31, 44, 3), np.uint8)
    return MediaPart(port, frames if isinstance(recipe, VideoTargets) else frames[0], "A red cat", "retrieve")


def with_captions(processor, config, directory):
    """The processor with the tokenizer of each generator's own text encoder, where a stage aligns with that."""
    if not any(fields.get("loss_weights", {}).get("alignment") for fields in config.stages.values()):
        return processor
    byte_tokenizer().save(str(directory))
    texts = {
        port: dataclasses.replace(processor.images[port], captions=str(directory), window=encoder.max_positions)
        for port, encoder in config.model.generator_encoders.items()
        if isinstance(encoder, TextEncoderConfig) and port in processor.images
    }
    return dataclasses.replace(processor, images={**processor.images, **texts})


def conversations(processor, model):
    """One with every port, and one with the last port alone, or with what its regions are of."""
    codes = [] if model.codes is None else [model.codes.port]
    shown = [port for port in model.encoders if port not in model.views]
    # Images that are codes wherever they stand.
    shown += [port for port in codes if not port.endswith(OUT)]
    last = shown[-1]
    # Ports that share another's signal read the parts of that one.
    own = {port for port in model.generators if getattr(processor.images.get(port), "of", port) == port}
    own = [port for port in model.generators if port in processor.images and port in own] + codes
    for number, ports in enumerate((shown, [model.regions[last], last] if last in model.regions else [last])):
        drawn = [made(port, processor, number) for port in own]
        media = tuple(MediaPart(port, source_of(port, processor, model)) for port in ports)
        answer = (TextPart("A red cat"), *drawn, TextPart("."))
        turns = (Message("user", (*media, TextPart("What?"))), Message("assistant", answer))
        yield Conversation(turns, name=f"with {ports}")


def with_instruction(batch, model):
    """The batch with the words that a Q-Former reads, where it reads any."""

    def read(port, media):
        if getattr(model.projectors.get(port), "vocab_size", None) is None:
            return media
        words = np.array([[5, 9, 1], [7, 0, 0]], np.int32)
        positions = np.tile(np.arange(3, dtype=np.int32), (2, 1))
        return media.replace(text=TextStream(words, positions, (words > 0).astype(np.int32)))

    return batch.replace(media={port: read(port, media) for port, media in batch.media.items()})


def first_params(model, mesh):
    """As training begins with, but for generators, whose many leaves take minutes to compile the drawing of."""
    shapes = flatten(model.param_shapes())
    published = {path for path in shapes if path.startswith(("generators/", "generator_encoders/"))}
    rng = np.random.default_rng(0)
    drawn = {
        path: jax.numpy.asarray(path.endswith("/scale") + 0.1 * rng.normal(size=shapes[path].shape), np.float32)
        for path in sorted(published)
    }
    return unflatten({**fresh_params(model, shapes.keys() - published, 0, mesh), **drawn})


@pytest.mark.quick(*QUICK)
@pytest.mark.parametrize("name", SYSTEMS)
def test_tiny_trains_what_each_stage_says(name, tmp_path):
    config = parsed(f"{name}:tiny")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, processor = MultimodalLM(config.model), with_captions(make_processor(config), config, tmp_path)
    params = first_params(model, mesh)
    for title, fields in config.stages.items():
        stage = dataclasses.replace(stage_of(title, fields), batch_size=2)
        mode = stage.data["mode"]
        talks = [as_caption(talk) if mode == "plain" else talk for talk in conversations(processor, config.model)]
        samples = [processor.sample(talk, mode=mode) for talk in talks]
        shown = [sum(map(len, sample.item_tokens.values())) + len(sample.targets) for sample in samples]
        assert all(shown) and all(sample.num_targets for sample in samples)
        batch = with_instruction(collate(samples, processor.plan), config.model)

        adapted, tree = adapt(model, params, stage)
        axes = flatten(adapted.param_axes())
        places = shardings(axes, mesh)
        trainable, frozen = split(tree, stage)
        before = {path: np.array(leaf) for path, leaf in trainable.items()}
        optimizer = make_optimizer(stage, multipliers(tree, stage), axes)
        layout = state_shardings(trainable, optimizer, places)
        state = init_state(trainable, optimizer, layout)
        # Compiled without optimisation: it runs but three times.
        loss = loss_of(adapted, stage.loss_weights)
        lowered = make_train_step(adapted, stage, optimizer, mesh, layout, loss).lower(state, frozen, batch)
        step = lowered.compile({"xla_backend_optimization_level": 0})
        # Behind gates of zero nothing has a gradient before these have moved, which warming up may put off by a step.
        for _ in range(3):
            state, metrics = step(state, frozen, batch)
            assert metrics["finite"] == 1 and np.isfinite(metrics["loss"]), title
        moved = {path.split("/")[0] for path, leaf in state.trainable.items() if (leaf != before[path]).any()}
        assert moved == {path.split("/")[0] for path in before}, title
