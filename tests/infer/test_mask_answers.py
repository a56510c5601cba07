"""Masks that come with answers: of the latest image and at its size, in chats, from files of records, as pictures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.api import Model
from mmjax.config import from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.generators.mask_decoder import original_masks
from mmjax.infer.answers import Makers, Making
from mmjax.infer.batch import run_batch, run_file
from mmjax.infer.chat import ChatSession, save_media
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.infer.masks import generate_masks, mask_port, scene_of
from mmjax.model import MultimodalLM
from mmjax.recipes.assemble import TrainConfig, make_processor

OPTIONS = GenerateOptions(max_new_tokens=4)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Images of two sizes, neither square."""
    place, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, size in (("wide", (20, 34)), ("high", (37, 24))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(place / f"{name}.png")
    return place


def asked(picture, *names):
    parts = tuple(MediaPart("image", str(picture / f"{name}.png")) for name in names)
    return Conversation((Message("user", (*parts, TextPart("where?"))),), name="asked")


@pytest.fixture(scope="module")
def system(picture):
    """LISA's tiny system whose signal is whatever it says first of the wide picture; processor; what it says then."""
    config = from_dict(TrainConfig, to_plain(load_config("lisa:tiny")))
    processor, random = make_processor(config), np.random.default_rng(1)
    model = MultimodalLM(config.model)
    drawn = lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), jnp.float32)
    params = jax.tree.map(drawn, model.param_shapes())
    sample = processor.sample(asked(picture, "wide"), add_generation_prompt=True)
    said = generate(model, params, collate([sample], processor.plan), OPTIONS).tokens[0]
    changed = dataclasses.replace(config.model, signal_tokens={"mask": (int(said[0]),)})
    return MultimodalLM(changed), params, processor, said


def test_scenes_are_of_the_latest_image(system, picture):
    model, _, processor, _ = system
    scene = scene_of(model, processor, asked(picture, "wide", "high"))
    assert scene.size == (37, 24) and scene.inner_size == (64, 42) and scene.pixels.shape == (64, 64, 3)
    assert not scene.pixels[:, 42:].any() and scene.pixels[:, :42].any()
    assert scene_of(model, processor, asked(picture)) is None
    silent = MultimodalLM(dataclasses.replace(
        model.config, generators={}, output_projectors={}, signal_tokens={}, generator_encoders={}
    ))  # fmt: skip
    assert mask_port(silent) is None and scene_of(silent, processor, asked(picture, "wide")) is None
    with pytest.raises(FileNotFoundError, match=r"asked: image 0: .*gone\.png"):
        scene_of(model, processor, asked(picture, "gone"))


@pytest.fixture(scope="module")
def wanted(system, picture):
    """The masks of the wide picture, by the function of arrays, brought to its size."""
    model, params, processor, said = system
    conversation = asked(picture, "wide")
    scene = scene_of(model, processor, conversation)
    batch = collate([processor.sample(conversation, add_generation_prompt=True)], processor.plan)
    out = generate_masks(model, params, batch, scene.pixels[None], OPTIONS)
    assert len(out.masks[0]) == (said == said[0]).sum() >= 1
    return np.asarray(original_masks(out.masks[0], 64, scene.inner_size, scene.size)) > 0


def test_a_chat_shows_them(system, picture, wanted, tmp_path):
    model, params, processor, _ = system
    session = ChatSession(model, params, processor, OPTIONS)
    reply = session.reply("where?", [picture / "wide.png"])
    assert [mask.shape for mask in reply.masks] == [(20, 34)] * len(wanted)
    np.testing.assert_array_equal(np.stack(reply.masks), wanted)
    assert reply.images == () and 0 < np.mean(wanted) < 1
    lines = save_media(reply, tmp_path)
    files = [tmp_path / f"reply_000_{number}_mask.png" for number in range(len(wanted))]
    assert lines == [f"saved {file}" for file in files]
    with Image.open(files[0]) as shown:
        assert shown.mode == "L" and shown.size == (34, 20)
        np.testing.assert_array_equal(np.asarray(shown), np.where(wanted[0], 255, 0))
    # Later questions are about the picture that was shown before.
    later = session.reply("and now?")
    assert all(mask.shape == (20, 34) for mask in later.masks)
    whole = Model(model.config, params, processor)
    parts = [{"type": "image", "path": str(picture / "wide.png")}, {"type": "text", "text": "where?"}]
    told = whole.chat([{"role": "user", "content": parts}], max_new_tokens=4)
    np.testing.assert_array_equal(np.stack(told.masks), wanted)


def test_a_file_of_records_gets_them_as_pictures(system, picture, wanted, tmp_path):
    """Rows with and without images, of different sizes, in one batch; without a folder there are none."""
    model, params, processor, _ = system
    shown = [("wide",), (), ("high",), ("wide",)]
    records = [
        {"messages": [{"role": "user", "content": [
            *({"type": "image", "path": f"{name}.png"} for name in names), {"type": "text", "text": "where?"}
        ]}]}
        for names in shown
    ]  # fmt: skip
    (picture / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    makers = Makers(model)
    given = OPTIONS, processor.plan
    files = picture / "in.jsonl", tmp_path / "out.jsonl"
    report = run_file(model, params, processor, *files, *given, 2, making=Making(), makers=makers)
    assert report.errors == 0 and report.compilations["drawing"] <= len(report.buckets)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for index in (0, 3):
        assert lines[index]["masks"] == [
            str(tmp_path / "out" / f"{index:06d}_{number}_mask.png") for number in range(len(wanted))
        ]
        for file, mask in zip(lines[index]["masks"], wanted, strict=True):
            with Image.open(file) as one:
                np.testing.assert_array_equal(np.asarray(one) > 0, mask)
    assert "masks" not in lines[1] and "images" not in lines[0]
    for file in lines[2].get("masks", ()):
        with Image.open(file) as one:
            assert one.size == (24, 37)
    silent = []
    run_batch(model, params, processor, records[:1], *given, 2, silent.append, image_root=str(picture))
    assert silent[0]["text"] == lines[0]["text"] and "masks" not in silent[0]
