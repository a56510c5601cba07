"""CLIP and SigLIP, pair and lone towers, against transformers."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.encoders.dual import DualEncoder, DualEncoderConfig, Tower
from mmjax.encoders.text import TextEncoderConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import load, model_of, save
from mmjax.paths import flatten

VISION = dict(
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=5,
    image_size=31,
    patch_size=9,
)
TEXT = dict(
    hidden_size=24,
    intermediate_size=50,
    num_hidden_layers=3,
    num_attention_heads=3,
    vocab_size=71,
    max_position_embeddings=13,
)


def randomised(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("logit"):
                parameter.fill_(1.3 if "scale" in name else -2.1)
            else:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.25)
    return model.eval()


def clip(eos=70, **options):
    text = {**TEXT, "eos_token_id": eos, "hidden_act": "gelu"}
    return randomised(
        transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config={**VISION, **options}, projection_dim=17)
        )
    )


def siglip(**options):
    text = {**TEXT, "projection_size": VISION["hidden_size"]}
    return randomised(
        transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config={**VISION, **options})
        )
    )


PAIRS = {
    "clip": clip,
    "clip, legacy eos": lambda: clip(eos=2),
    "clip, other eps": lambda: clip(layer_norm_eps=1e-3, hidden_act="gelu_pytorch_tanh"),
    "siglip": siglip,
}


def inputs(batch=3, length=11):
    rng = np.random.default_rng(4)
    ids = rng.integers(3, 69, (batch, length))
    mask = np.ones_like(ids)
    for row, end in enumerate(rng.integers(length // 2, length, batch)):
        ids[row, end:] = 70
        mask[row, end + 1 :] = 0
    pixels = rng.normal(size=(2, 3, 31, 31)).astype(np.float32)
    return ids, mask, pixels


def both(model, loaded, ids, mask, pixels):
    with torch.no_grad():
        options = {} if mask is None else {"attention_mask": torch.tensor(mask)}
        theirs = model(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels), **options)
    run = jax.jit(DualEncoder(loaded.config).__call__)
    return theirs, run(loaded.params, ids, None if mask is None else mask > 0, pixels.transpose(0, 2, 3, 1))


def short_names(path):
    """Arrays by name without the prefix of a lone tower, which transformers writes if it read it."""
    arrays = load_file(path)
    if any(name.startswith("logit") for name in arrays):
        return arrays
    return {re.sub("^(text|vision)_model[.]", "", name): array for name, array in arrays.items()}


def round_trip(tmp_path, loaded, cls):
    """Exports, checks every array against the first directory, and returns transformers' reading of it."""
    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config)
    again, info = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    reloaded = load(tmp_path / "ours")
    assert reloaded.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, loaded.params)
    again.save_pretrained(tmp_path / "again")
    theirs, mine = (short_names(tmp_path / d / "model.safetensors") for d in ("theirs", "again"))
    assert set(theirs) == set(mine)
    for name, array in theirs.items():
        np.testing.assert_array_equal(mine[name], array)
    return again.eval()


@pytest.mark.quick("clip", "siglip")
@pytest.mark.parametrize("name", PAIRS)
def test_pair(tmp_path, parity, name):
    model = PAIRS[name]()
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert from_dict(DualEncoderConfig, json.loads(json.dumps(to_dict(loaded.config)))) == loaded.config
    ids, mask, pixels = inputs()
    for use in (None, mask):
        theirs, mine = both(model, loaded, ids, use, pixels)
        reference = (theirs.logits_per_image, theirs.logits_per_text, theirs.image_embeds, theirs.text_embeds)
        for ours, other in zip(mine, reference, strict=True):
            parity.close(ours, other)
    again = round_trip(tmp_path, loaded, type(model))
    theirs, _ = both(again, loaded, ids, mask, pixels)
    assert torch.equal(theirs.logits_per_text, reference[1])


def test_batch_of_one(tmp_path, parity):
    model = clip()
    model.save_pretrained(tmp_path)
    ids, _, pixels = inputs(batch=1, length=1)
    theirs, mine = both(model, load(tmp_path), ids, None, pixels[:1])
    parity.close(mine[0], theirs.logits_per_image)


def towers():
    vision, text = (
        transformers.CLIPVisionConfig(**VISION, projection_dim=7),
        transformers.CLIPTextConfig(**TEXT, projection_dim=9, eos_token_id=70),
    )
    siglip_vision = transformers.SiglipVisionConfig(**VISION)
    headless = transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
    siglip_text = transformers.SiglipTextConfig(**TEXT, projection_size=19)
    return {
        "clip vision": (transformers.CLIPVisionModel, vision),
        "clip vision projected": (transformers.CLIPVisionModelWithProjection, vision),
        "clip text": (transformers.CLIPTextModel, text),
        "clip text projected": (transformers.CLIPTextModelWithProjection, text),
        "siglip vision": (transformers.SiglipVisionModel, siglip_vision),
        "siglip vision without head": (transformers.SiglipVisionModel, headless),
        "siglip text": (transformers.SiglipTextModel, siglip_text),
    }


@pytest.mark.parametrize("spelling", ["disk", "hub"])
@pytest.mark.parametrize("name", towers())
def test_lone_tower(tmp_path, parity, name, spelling):
    cls, config = towers()[name]
    model = randomised(cls(config))
    model.save_pretrained(tmp_path / "theirs")
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    prefix = "text_model." if "text" in name else "vision_model."
    if spelling == "hub" and not any(key.startswith(prefix) for key in weights):
        renamed = {key if "projection" in key else prefix + key: array for key, array in weights.items()}
        save_file(renamed, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    loaded = load(tmp_path / "theirs")
    ids, mask, pixels = inputs()
    with torch.no_grad():
        if "text" in name:
            theirs = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
            mine = model_of(loaded.config)(loaded.params, ids, mask > 0)
        else:
            theirs = model(pixel_values=torch.tensor(pixels))
            mine = model_of(loaded.config)(loaded.params, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    parity.close(mine["last_hidden_state"], theirs.last_hidden_state)
    if "projected" in name:
        parity.close(mine["embeds"], theirs.text_embeds if "text" in name else theirs.image_embeds)
    elif name == "siglip text":
        parity.close(mine["embeds"], theirs.pooler_output)
    elif "without head" not in name:
        parity.close(mine["pooled"], theirs.pooler_output)
    assert ("embeds" in mine) == ("projected" in name or name == "siglip text")
    if spelling == "disk":
        round_trip(tmp_path, loaded, cls)


def test_configs_of_2022_with_a_second_copy_of_the_keys_and_buffers(tmp_path, parity):
    model = clip(eos=2)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = {k: v for k, v in config["text_config"].items() if k != "eos_token_id"}
    config["vision_config_dict"] = config["vision_config"]
    config["text_config"] = {"vocab_size": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    for tower, positions in (("text_model", 13), ("vision_model", 10)):
        weights[tower + ".embeddings.position_ids"] = np.arange(positions)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    reference = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    loaded = load(tmp_path)
    assert loaded.config.text.eos_token == reference.config.text_config.eos_token_id == 49407
    ids, mask, pixels = inputs()
    theirs, mine = both(reference, loaded, ids, mask, pixels)
    parity.close(mine[1], theirs.logits_per_text)


@pytest.mark.slow
def test_eos_is_its_first_occurrence():
    config = TextEncoderConfig(20, 8, 1, 2, 12, eos_token=5, activation="gelu")
    tower = Tower(config)
    params = jax.tree.map(lambda a: a + 0.1, jax.jit(tower.init)(jax.random.key(0)))
    ids = np.array([[3, 5, 19, 5], [5, 5, 5, 5]])
    out = tower(params, ids)
    np.testing.assert_array_equal(out["pooled"], out["last_hidden_state"][np.arange(2), [1, 0]])
    legacy = Tower(TextEncoderConfig(20, 8, 1, 2, 12, activation="gelu"))(params, ids)
    np.testing.assert_array_equal(legacy["pooled"], out["last_hidden_state"][np.arange(2), [2, 0]])


@pytest.mark.slow
def test_fresh_pair_has_axes_and_shapes_and_exports(tmp_path):
    image = ViTConfig(8, 4, 12, 1, 2, 16, projection_dim=6)
    config = DualEncoderConfig(image, TextEncoderConfig(20, 8, 2, 2, 12, eos_token=3, projection_dim=6))
    model = DualEncoder(config)
    params = jax.jit(model.init)(jax.random.key(0))
    shapes, axes = flatten(model.param_shapes()), flatten(model.param_axes())
    assert set(flatten(params)) == set(shapes) == set(axes)
    for path, leaf in flatten(params).items():
        assert leaf.shape == shapes[path].shape and leaf.ndim == len(axes[path]), path
    assert axes["text/blocks/attn/q/kernel"] == ("layers", "embed", "heads", "head_dim")
    save(tmp_path, config, params)
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is transformers.CLIPModel


def test_what_does_not_fit_is_named(tmp_path):
    text = TextEncoderConfig(20, 8, 2, 2, 12, projection_dim=6)
    with pytest.raises(ConfigError, match="image tower's vectors have width 12, the text tower's 6"):
        DualEncoderConfig(ViTConfig(8, 4, 12, 1, 2, 16), text)
    odd = ViTConfig(8, 4, 12, 1, 2, 16, pre_norm=False)
    with pytest.raises(ConfigError, match="pre_norm=False"):
        save(tmp_path, odd, Tower(odd).param_shapes())
    with pytest.raises(ValueError, match="text of 78 tokens, but the encoder has 77 positions"):
        jax.eval_shape(Tower(text), Tower(text).param_shapes(), np.zeros((1, 78), int))
    model = clip()
    model.save_pretrained(tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["vision_config"]["image_size"] = [31, 40]
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"image_size \[31, 40\] is not square"):
        load(tmp_path / "clip")
