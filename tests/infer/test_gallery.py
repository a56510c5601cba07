"""Folders of images that a model looks its signals up in: embedded once, found by name, on the command line too."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax import cli, cli_generation
from mmjax.api import Model
from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.choice_targets import RetrievalTargets
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.retrieval import RetrievalConfig
from mmjax.infer.gallery import image_files
from mmjax.infer.retrieve import make_gallery
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.output_projectors import LinearOutputConfig

VOCAB = 40
WORDS = ["<s>", "</s>", *(f"word{number}" for number in range(2, VOCAB))]
TEMPLATE = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
PROMPTS = ["word5 word7 word9", "word30 word31", "word3 word3 word12 word20"]


def config(said):
    return MultimodalLMConfig(
        DecoderConfig(VOCAB, 16, 1, 2, 2, 8, 24, max_positions=80),
        generators={"find": RetrievalConfig(6, 5, False)},
        output_projectors={"find": LinearOutputConfig(16, 5, "mean")},
        signal_tokens={"find": (said,)},
        generator_encoders={"find": ViTConfig(8, 4, 8, 1, 2, 12, projection_dim=6)},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny FROMAGe, whose signal is what its weights say most often."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("words")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(WORDS[:2])
    words.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    random = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
    params = jax.tree.map(draw, MultimodalLM(config(1)).param_shapes())

    def made(said):
        processor = Processor(
            load_tokenizer(str(place)), {"find": RetrievalTargets(side=8)}, TEMPLATE, {}, {},
            MultimodalLM(config(said)).num_tokens, signals={"find": (said,)},
        )  # fmt: skip
        return Model(config(said), params, processor, generation={"eos_token_id": ()})

    said = [answers(made(1), prompt).tokens[0] for prompt in PROMPTS]
    return made(int(np.bincount(np.concatenate(said)).argmax()))


def answers(model, prompt, **options):
    return model.generate([model.processor.tokenizer.encode(prompt)], max_new_tokens=6, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, one of them further down, two files that are called images and are none, and one that is not."""
    place, random = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    (place / "below").mkdir()
    for number, name in enumerate(["b.png", "a.PNG", "c.jpg", "below/d.png", "e.bmp"]):
        pixels = random.integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name)
    (place / "broken.png").write_bytes(b"no image")
    (place / "half.jpg").write_bytes((place / "c.jpg").read_bytes()[:80])
    (place / "notes.txt").write_text("not one of them")
    return place


@pytest.fixture(scope="module")
def gallery(model, folder):
    with pytest.warns(UserWarning, match="2 of 7 images cannot be read and are left out: .*broken.png.*half.jpg"):
        return model.gallery("find", folder, batch_size=2)


def test_a_folder_is_a_gallery(model, folder, gallery, capsys):
    wanted = [str(folder / name) for name in ("a.PNG", "b.png", "below/d.png", "c.jpg", "e.bmp")]
    assert list(gallery.names) == wanted
    recipe = model.processor.images["find"].recipe
    arrays = [recipe(recipe.open(path)) for path in wanted]
    alone = make_gallery(model.module, model.params, "find", arrays)
    np.testing.assert_allclose(gallery.embeddings, alone.embeddings, atol=1e-5)
    again = model.gallery("find", wanted[3:0:-2])
    assert again.names == (wanted[3], wanted[1])
    np.testing.assert_allclose(again.embeddings, gallery.embeddings[[3, 1]], atol=1e-5)
    assert "embedded 2/2, 0 errors" in capsys.readouterr().err


def test_signals_are_looked_up_by_generate(model, gallery):
    (said,) = model.config.signal_tokens["find"]
    out = answers(model, PROMPTS[0], galleries={"find": gallery}, num_retrieved=3)
    assert out.images is None
    found, count = out.retrieved["find"][0], (out.tokens[0] == said).sum()
    assert len(found) == count
    for one in found:
        assert list(one.scores) == sorted(one.scores, reverse=True) and len(one.names) == 3
        assert one.names == tuple(gallery.names[number] for number in one.indices)
    assert answers(model, PROMPTS[0]).retrieved is None
    with pytest.raises(ValueError, match=r"num_retrieved: no gallery is given; ports that retrieve: \['find'\]"):
        answers(model, PROMPTS[0], num_retrieved=3)
    with pytest.raises(ValueError, match="galleries.find: 5 images, 6 to be retrieved"):
        answers(model, PROMPTS[0], galleries={"find": gallery}, num_retrieved=6)
    with pytest.raises(ValueError, match="guidance_scale: this model has no generator that draws"):
        answers(model, PROMPTS[0], galleries={"find": gallery}, guidance_scale=2.0)
    with pytest.raises(ValueError, match="generation_mode: this model does not write images as tokens"):
        answers(model, PROMPTS[0], generation_mode="image")


def test_galleries_that_cannot_be(model, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory of images"):
        model.gallery("find", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no image in it"):
        image_files(tmp_path)
    with pytest.raises(ValueError, match="none of 2 images can be read: .*broken.png.*half.jpg"):
        model.gallery("find", [folder / "broken.png", folder / "half.jpg"])
    with pytest.raises(ValueError, match=r"port 'image_out' retrieves nothing; ports that do: \['find'\]"):
        model.gallery("image_out", folder)
    blind = dataclasses.replace(model, processor=dataclasses.replace(model.processor, images={}))
    with pytest.raises(ValueError, match="does not say how images of port 'find' become arrays"):
        blind.gallery("find", folder)


@pytest.mark.filterwarnings("ignore:2 of 7 images")
def test_the_command_line_finds_the_same(model, folder, gallery, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model", format="mmjax")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["generate", str(tmp_path / "model"), "-i", str(source), "-o", str(output), "--max-new-tokens", "6"]
    asked = ["--gallery", f"find={folder}", "--num-retrieved", "2"]
    assert cli.main([*command, *asked]) == 0
    assert "embedded 7/7, 2 errors" in capsys.readouterr().err
    lines, told = [json.loads(line) for line in output.read_text().splitlines()], 0
    for prompt, line in zip(PROMPTS, lines, strict=True):
        out = answers(model, prompt, galleries={"find": gallery}, num_retrieved=2)
        wanted = out.retrieved["find"][0]
        assert [one["names"] for one in line["retrieved"]["find"]] == [list(one.names) for one in wanted]
        for one, other in zip(line["retrieved"]["find"], wanted, strict=True):
            assert one["signal"] == other.signal
            np.testing.assert_allclose(one["scores"], other.scores, atol=1e-5)
        told += len(wanted)
    assert told > 2
    chat = ["chat", *command[1:2], *command[6:], *asked, "--media-dir", str(tmp_path), "-m", PROMPTS[0]]
    assert cli.main(chat) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("find: ")]
    assert len(shown) == len(lines[0]["retrieved"]["find"]) and all(".png (" in line.lower() for line in shown[:1])
    for wrong, message in (
        ([f"find={folder}"] * 2, "each port once"),
        (["find"], "wanted is PORT=DIR"),
        ([f"x={folder}"], "port 'x' retrieves"),
    ):
        with pytest.raises(ValueError, match=message):
            cli_generation.read_galleries(types.SimpleNamespace(gallery=wrong), model)
