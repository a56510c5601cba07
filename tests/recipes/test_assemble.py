"""The starting model: parts from checkpoints of their own, fresh parts, the processor; what must agree."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.config import ConfigError, from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.processor import Processor
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.encoders.dual import Tower
from mmjax.encoders.frames import FramesConfig
from mmjax.interop import huggingface
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.recipes.assemble import (
    InitConfig,
    TrainConfig,
    assemble,
    byte_tokenizer,
    make_processor,
    with_code_images,
)


def fresh(model, seed):
    """`model.init` compiled as a whole and without optimisation, which on a CPU is quickest."""
    return jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(seed))


def drawn(model, seed):
    """Params at random by numpy, where any will do: compiling an initialiser takes seconds."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), model.param_shapes())


@pytest.fixture(scope="module")
def config():
    return from_dict(TrainConfig, to_plain(load_config("llava_1_5:tiny")))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def parts(config, tmp_path_factory):
    """Directories of a language model with a smaller vocabulary and of a vision tower, and their params."""
    folder = tmp_path_factory.mktemp("parts")
    small = MultimodalLMConfig(dataclasses.replace(config.model.backbone, vocab_size=261, max_positions=99))
    text = drawn(MultimodalLM(small), 5)
    huggingface.save(folder / "text", small, text)
    tower = config.model.encoders["image"]
    plain = dataclasses.replace(tower, feature_layers=(-1,), feature_strategy="full")
    vision = drawn(Tower(plain), 6)
    huggingface.save(folder / "vision", plain, vision)
    return folder, text, vision


def test_parts_come_from_their_checkpoints_and_the_rest_is_fresh(config, mesh, parts):
    folder, text, vision = parts
    init = InitConfig(str(folder / "text"), {"image": str(folder / "vision")})
    model, params, processor = assemble(dataclasses.replace(config, init=init), mesh)
    found, wanted = flatten(params), flatten(model.param_shapes())
    assert {path: leaf.shape for path, leaf in found.items()} == {p: s.shape for p, s in wanted.items()}
    for path, leaf in flatten(vision, "encoders/image/").items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    for path, leaf in flatten(text).items():
        axis = {"backbone/embed/embedding": 0, "backbone/lm_head/kernel": 1}.get(path)
        if axis is None:
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
            continue
        old, new = np.split(np.asarray(found[path]), [261], axis)
        np.testing.assert_array_equal(old, leaf)
        assert new.shape[axis] == 272 - 261
        mean = np.asarray(leaf, np.float64).mean(axis, keepdims=True)
        np.testing.assert_allclose(new, np.broadcast_to(mean, new.shape), atol=1e-6)
    whole = flatten(fresh(model, config.seed))
    for path in ("projectors/image/fc1/kernel", "projectors/image/fc2/bias"):
        np.testing.assert_allclose(found[path], whole[path], atol=1e-6)


def test_an_expert_starts_as_a_copy_of_the_text_and_new_rows_are_fresh(config, mesh, parts):
    folder, text, _ = parts
    init = InitConfig(str(folder / "text"), {"image": str(folder / "vision")})
    wanted = changed(config, {"fusion": VisualExpertConfig(), "new_tokens": 11})
    _, params, _ = assemble(dataclasses.replace(wanted, init=init), mesh)
    found = flatten(params["backbone"])
    for path, leaf in flatten(text["backbone"]).items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
        if path.startswith(("blocks/attn/", "blocks/mlp/")):
            np.testing.assert_array_equal(found[f"fusion/{path}"], leaf, err_msg=path)
    assert found["embed_new/embedding"].shape == (11, 64) and found["lm_head_new/kernel"].shape == (64, 11)


def test_frames_take_the_weights_of_an_image_tower(config, mesh, parts):
    folder, _, vision = parts
    port, model, spec = "video", config.model, config.processor
    model = dataclasses.replace(
        model,
        encoders={port: FramesConfig(model.encoders["image"], 2)},
        projectors={port: model.projectors["image"]},
        media_tokens={port: 258},
    )
    spec = dataclasses.replace(spec, placeholders={port: "<video>"}, images={}, items={})
    init = InitConfig(None, {port: str(folder / "vision")})
    _, params, _ = assemble(dataclasses.replace(config, model=model, processor=spec, init=init), mesh)
    found = flatten(params)
    for path, leaf in flatten(vision).items():
        np.testing.assert_array_equal(found[f"encoders/video/frame/{path}"], leaf, err_msg=path)


def test_fresh_parts_are_made_on_the_mesh(config):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    model, params, _ = assemble(config, mesh)
    leaf = params["backbone"]["blocks"]["mlp"]["up"]["kernel"]
    assert leaf.sharding.shard_shape(leaf.shape) == (2, 32, 80)
    alone = flatten(fresh(model, config.seed))
    for path, value in flatten(params).items():
        np.testing.assert_allclose(value, alone[path], atol=1e-6, err_msg=path)


def changed(config, backbone=None, tower=None):
    model = config.model
    if backbone:
        model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, **backbone))
    if tower:
        encoders = {"image": dataclasses.replace(model.encoders["image"], **tower)}
        model = dataclasses.replace(model, encoders=encoders)
    return dataclasses.replace(config, model=model)


def test_checkpoints_that_differ_from_the_config_are_named(config, mesh, parts):
    folder = parts[0]
    text, vision = str(folder / "text"), str(folder / "vision")
    cases = [
        (
            changed(config, {"rope_theta": 5e5}),
            InitConfig(text),
            r"rope_theta \(here 500000.0, there 10000.0\)",
        ),
        (
            changed(config, {"num_layers": 3}),
            InitConfig(text),
            r"model.backbone and .*num_layers \(here 3, there 2\)",
        ),
        (changed(config, {"vocab_size": 260}), InitConfig(text), "vocab_size is 260, but .* has 261 tokens"),
        (
            changed(config, None, {"norm_eps": 1e-3}),
            InitConfig(None, {"image": vision}),
            "encoders.image and .*norm_eps",
        ),
        (config, InitConfig(vision), "holds a ViTConfig, no language model"),
        (config, InitConfig(None, {"image": text}), "holds a MultimodalLMConfig, no vit"),
        (config, InitConfig(None, {"imag": vision}), r"no port 'imag'; the model has \['image'\]"),
    ]
    for base, init, message in cases:
        with pytest.raises(ConfigError, match=message):
            assemble(dataclasses.replace(base, init=init), mesh)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        assemble(dataclasses.replace(config, init=InitConfig("nowhere")), mesh)
    with pytest.raises(ConfigError, match="neither a model nor from_pretrained"):
        assemble(dataclasses.replace(config, model=None), mesh)


def test_byte_tokenizer_reads_and_writes_anything():
    tokenizer = byte_tokenizer().with_tokens(["<image>"])
    for text in ("red 17", " two  spaces\n", "naïve 漢字 🐸", "<s> is no token </s> <image>"):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.encode()) and max(ids) < 256
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.token_id("<image>")) == (256, 257, 258)


def test_processor_must_fit_the_model(config):
    processor = make_processor(config)
    assert processor.plan.lengths == (64, 128, 256, 512)
    assert processor.images["image"].output_size() == (28, 28)
    spec = config.processor
    wrong = [
        (
            dataclasses.replace(spec, placeholders={"image": "</s>"}),
            r"media_tokens.image is 258.*'</s>' is 257",
        ),
        (dataclasses.replace(spec, tokenizer=None), 'directory, a .gguf file or "bytes"'),
        (dataclasses.replace(spec, images={"image": {"sise": 3}}), "processor.images.*sise"),
    ]
    for other, message in wrong:
        with pytest.raises(ConfigError, match=message):
            make_processor(dataclasses.replace(config, processor=other))
    with pytest.raises(ConfigError, match="tokenizer has 259 tokens, model.backbone.vocab_size is 258"):
        make_processor(changed(config, {"vocab_size": 258}))


def test_a_checkpoint_that_says_nothing_of_codes_takes_the_configs_word():
    """As a Chameleon of transformers, whose processor is a tokenizer."""
    config = from_dict(TrainConfig, to_plain(load_config("chameleon:tiny")))
    whole, model, spec = make_processor(config), config.model, config.processor
    bare = Processor(byte_tokenizer(), {}, None, {}, {}, model.num_tokens)
    found = with_code_images(bare, model, spec)
    image = np.zeros((9, 5, 3), np.uint8)
    turns = [Message("user", (MediaPart("image", image), TextPart("?"))), Message("assistant", (TextPart("Yes"),))]
    talk = Conversation(tuple(turns), name="talk")
    np.testing.assert_array_equal(found.sample(talk).tokens, whole.sample(talk).tokens)
    assert np.count_nonzero(found.sample(talk).tokens == model.codes.placeholder) == 16
    assert with_code_images(found, model, spec) is found
    other = dataclasses.replace(model, codes=None)
    assert with_code_images(bare, other, spec) is bare
    with pytest.raises(ConfigError, match="with processor.controls the tokenizer has 300 tokens"):
        with_code_images(bare, model, dataclasses.replace(spec, controls=tuple(f"<{n}>" for n in range(41))))
