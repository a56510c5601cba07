"""from_pretrained and Model as a user meets them, beside transformers on the same checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

import mmjax
from mmjax.config import ConfigError
from mmjax.data.items import TokenPlanError
from mmjax.distributed.mesh import MeshConfig, make_mesh

IMAGE = 3
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def build(directory, **text):
    """A tiny LLaVA with tokenizer and processor files: odd widths, grouped heads."""
    words = ["What is this picture of? It shows a red apple and some green pears."] * 3
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|turn|>", "<pad>", "<image>"]
    raw.train_from_iterator(words, trainers.BpeTrainer(vocab_size=300, special_tokens=special,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    vision = dict(hidden_size=24, intermediate_size=38, num_hidden_layers=3, num_attention_heads=4, image_size=28,
                  patch_size=14, projection_dim=16, model_type="clip_vision_model")  # fmt: skip
    text = dict(vocab_size=raw.get_vocab_size(), hidden_size=30, intermediate_size=42, num_hidden_layers=2,
                num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=160,
                model_type="llama", bos_token_id=0, eos_token_id=0, pad_token_id=2) | text  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(directory)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>",
                                                additional_special_tokens=["<|turn|>", "<image>"])  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    recipe = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28},
              "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "do_resize": True,
              "do_normalize": True, "do_rescale": True, "do_convert_rgb": True, "resample": 3,
              "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(recipe))
    return model, fast


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llava")
    reference, tokenizer = build(directory)
    return directory, reference, tokenizer, mmjax.from_pretrained(directory)


def inputs(side="left"):
    """Two rows: one image and two images, the first row padded."""
    rng = np.random.default_rng(1)
    rows = [[7] + [IMAGE] * 4 + [9, 20, 31], [8] + [IMAGE] * 4 + [12] + [IMAGE] * 4 + [40, 41, 17]]
    length = max(map(len, rows))
    ids, mask = np.full((2, length), 2), np.zeros((2, length), int)
    for b, row in enumerate(rows):
        at = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[b, at], mask[b, at] = row, 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": rng.normal(size=(3, 3, 28, 28)).astype(np.float32),
    }


def torched(arrays):
    return {name: torch.tensor(array) for name, array in arrays.items()}


def close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.sqrt(np.mean(theirs**2)))))


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_loss_equal_transformers(llava, side):
    _, reference, _, model = llava
    x = inputs(side)
    # A text's first token has nothing before it to be predicted from but padding.
    target = (np.cumsum(x["attention_mask"], 1) > 1) & (x["attention_mask"] > 0) & (x["input_ids"] != IMAGE)
    labels = np.where(target, x["input_ids"], -100)
    with torch.no_grad():
        theirs = reference(**torched(x), labels=torch.tensor(labels))
    ours = model(**x, labels=labels)
    real = x["attention_mask"] > 0
    close(np.asarray(ours.logits)[real], theirs.logits.numpy()[real])
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-5)
    assert model(**torched(x)).logits.shape == ours.logits.shape


@pytest.mark.parametrize("eos", [(), (0, 77)])
def test_greedy_generation_equals_transformers_with_either_padding(llava, eos):
    _, reference, _, model = llava
    x = inputs("left")
    with torch.no_grad():
        theirs = reference.generate(**torched(x), max_new_tokens=9, do_sample=False,
                                    eos_token_id=list(eos) or 10**6, pad_token_id=2)  # fmt: skip
    length = x["input_ids"].shape[1]
    for side in ("left", "right"):
        ours = model.generate(**inputs(side), max_new_tokens=9, eos_token_id=eos, pad_token_id=2)
        got = theirs.numpy()[:, length:]
        np.testing.assert_array_equal(ours.tokens[:, : got.shape[1]], got)
    assert ours.sequences.shape == (2, length + 9) and len(ours.text) == 2


def test_chat_sees_the_picture_and_equals_arrays_from_transformers(llava, tmp_path):
    directory, reference, tokenizer, model = llava
    from PIL import Image

    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (33, 51, 3), dtype=np.uint8)).save(path)
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = np.array([tokenizer(text.replace("<image>", "<image>" * 4))["input_ids"]])
    from transformers.models.clip import CLIPImageProcessorPil

    pixels = CLIPImageProcessorPil.from_pretrained(directory)(Image.open(path), return_tensors="np")[
        "pixel_values"
    ]
    expected = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=6)
    pieces = []
    reply = model.chat(messages, on_text=pieces.append, max_new_tokens=6)
    assert reply == expected.text[0] == "".join(pieces) and reply.images == ()


def test_saving_in_either_format_gives_the_same_model(llava, tmp_path):
    _, reference, _, model = llava
    x = inputs()
    whole = model(**x).logits
    model.save_pretrained(tmp_path / "ours", format="mmjax")
    again = mmjax.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(again(**x).logits, whole)
    assert again.processor.tokenizer.chat_template == TEMPLATE and again.stop_ids == model.stop_ids
    model.save_pretrained(tmp_path / "theirs")
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        close(back(**torched(x)).logits, reference(**torched(x)).logits)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs").chat_template == TEMPLATE
    with pytest.raises(ConfigError, match="huggingface"):
        model.save_pretrained(tmp_path / "no", format="torch")


def test_loading_in_bfloat16_and_onto_a_mesh(llava):
    directory, _, _, model = llava
    x = inputs()
    whole = np.asarray(model(**x).logits)
    half = mmjax.from_pretrained(directory, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    assert np.abs(np.asarray(half(**x).logits) - whole).max() < 0.1 * np.abs(whole).max()
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = mmjax.from_pretrained(directory, mesh=mesh)
        kernel = placed.params["backbone"]["blocks"]["mlp"]["up"]["kernel"]
        assert len(kernel.sharding.device_set) == 4
    with pytest.raises(ConfigError, match="kv_heads"):
        mmjax.from_pretrained(directory, mesh=make_mesh(MeshConfig(tensor=4), jax.devices()[:4]))


def test_a_checkpoint_without_tokenizer_takes_arrays(llava, tmp_path):
    _, reference, _, model = llava
    reference.save_pretrained(tmp_path)
    bare = mmjax.from_pretrained(tmp_path)
    x = inputs()
    np.testing.assert_array_equal(bare(**x).logits, model(**x).logits)
    out = bare.generate(**x, max_new_tokens=3)
    assert out.text is None and bare.stop_ids == (0,)
    with pytest.raises(ValueError, match="tokenizer"):
        bare.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"input_ids": [[7] + [IMAGE] * 3 + [1]], "pixel_values": 1},
            ["row 0", "3 placeholder", "4 tokens each"],
        ),
        ({"input_ids": [[7] + [IMAGE] * 4 + [1]], "pixel_values": 2}, ["1 images a row", "2 images"]),
        ({"input_ids": [[7] + [IMAGE] * 4 + [1]], "pixel_values": 0}, ["0 images"]),
        ({"input_ids": [[1.5, 2.0]]}, ["input_ids", "float64"]),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, ["attention_mask", "(1, 1)"]),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, ["empty prompt"]),
        ({"input_ids": [[1, 2]], "max_new_tokens": 0}, ["max_new_tokens", "0"]),
        ({"input_ids": [[1, 2]], "max_new_tokens": 400}, ["400", "160 positions"]),
        ({"input_ids": [[1, 2]], "temprature": 0.5}, ["temprature", "temperature"]),
    ],
)
def test_bad_input_is_named_before_anything_compiles(llava, change, words):
    model = llava[-1]
    before = dict(model.programs.compilations)
    given = {
        name: np.array(value) if name in ("input_ids", "attention_mask") else value
        for name, value in change.items()
    }
    if "pixel_values" in given:
        given["pixel_values"] = np.zeros((given["pixel_values"], 3, 28, 28), np.float32)
    with pytest.raises((ValueError, TokenPlanError)) as error:
        model.generate(**given)
    for word in words:
        assert word in str(error.value)
    assert dict(model.programs.compilations) == before


def test_paths_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/at/all"):
        mmjax.from_pretrained("nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="owner/name.*hub"):
        mmjax.from_pretrained("owner/name")
    with pytest.raises(ConfigError, match="config.json"):
        mmjax.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="bfloat16"):
        mmjax.from_pretrained(tmp_path, dtype="float16")


def test_dual_encoder_equals_transformers(tmp_path):
    torch.manual_seed(1)
    vision = dict(hidden_size=20, intermediate_size=33, num_hidden_layers=2, num_attention_heads=5)
    text = dict(vocab_size=61, hidden_size=18, intermediate_size=31, num_hidden_layers=1, num_attention_heads=3)
    config = CLIPConfig(
        vision_config=vision | dict(image_size=26, patch_size=8),
        text_config=text | dict(max_position_embeddings=12, eos_token_id=60, bos_token_id=59),
        projection_dim=14,
    )
    reference = CLIPModel(config).eval()
    reference.save_pretrained(tmp_path / "clip")
    model = mmjax.from_pretrained(tmp_path / "clip")
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(1, 50, (3, 6)), np.full((3, 1), 60)], 1)
    pixels = rng.normal(size=(2, 3, 26, 26)).astype(np.float32)
    with torch.no_grad():
        theirs = reference(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
    ours = model(input_ids=ids, pixel_values=pixels)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        close(getattr(ours, name), getattr(theirs, name))
    model.save_pretrained(tmp_path / "ours", format="mmjax")
    np.testing.assert_array_equal(
        mmjax.from_pretrained(tmp_path / "ours")(input_ids=ids, pixel_values=pixels).image_embeds,
        ours.image_embeds,
    )
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=ids)


def test_import_is_light():
    import subprocess
    import sys

    code = (
        "import sys, mmjax; mmjax.list_systems; assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
