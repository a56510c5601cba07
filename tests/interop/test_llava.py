"""LLaVA against transformers: towers, feature layers and strategies, spellings, export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.tensors import WeightsError
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

VISION = dict(
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=5,
    image_size=31,
    patch_size=9,
)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
)
IMAGE = 80
CLIP, SIGLIP = transformers.CLIPVisionConfig, transformers.SiglipVisionConfig
LLAMA, QWEN2 = transformers.LlamaConfig, transformers.Qwen2Config
# Name -> tower, text, options, tokens of an image (9 patches).
VARIANTS = {
    "as published": (CLIP, LLAMA, {}, 9),
    "full, first layer": (
        CLIP,
        LLAMA,
        dict(vision_feature_layer=1, vision_feature_select_strategy="full"),
        10,
    ),
    "two layers, no bias": (
        CLIP,
        QWEN2,
        dict(vision_feature_layer=[-1, 0], multimodal_projector_bias=False),
        9,
    ),
    "siglip": (SIGLIP, QWEN2, dict(vision_feature_layer=-1, vision_feature_select_strategy="full"), 9),
    "siglip, first patch dropped": (SIGLIP, LLAMA, dict(projector_hidden_act="relu"), 8),
    "tied": (CLIP, QWEN2, dict(tie=True, image_token_index=100), 9),
}


def build(name):
    tower, text, options, count = VARIANTS[name]
    options = dict(options)
    text = text(**TEXT, tie_word_embeddings=options.pop("tie", False))
    torch.manual_seed(3)
    config = transformers.LlavaConfig(
        vision_config=tower(**VISION), text_config=text, **{"image_token_index": IMAGE, **options}
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    if config.image_token_index >= 83:
        # transformers looks the placeholder up before it replaces it.
        model.resize_token_embeddings(101)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key and "weight" in key else 0.0, 0.2)
    return model, count


def inputs(model, count, images=(1, 2, 0)):
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 79, (len(images), 5 + count * max(images)))
    mask = np.ones_like(ids)
    for row, number in enumerate(images):
        for image in range(number):
            start = 2 + row + image * count
            ids[row, start : start + count] = model.config.image_token_index
        mask[row, 4 + number * count :] = 0
    return ids, mask, rng.normal(size=(sum(images), 3, 31, 31)).astype(np.float32)


def logits(model, ids, mask, pixels):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), pixel_values=torch.tensor(pixels)
        ).logits


def check(parity, loaded, model, count, **options):
    ids, mask, pixels = inputs(model, count, **options)
    mine = parity.lm(loaded.config, loaded.params, ids, mask, pixels)
    parity.close(mine[mask > 0], logits(model, ids, mask, pixels)[torch.tensor(mask) > 0])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_export_and_round_trip(tmp_path, parity, name):
    model, count = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert loaded.config.num_tokens("image") == count
    assert from_dict(MultimodalLMConfig, json.loads(json.dumps(to_dict(loaded.config)))) == loaded.config
    check(parity, loaded, model, count)

    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config, loaded.generation_config, 30_000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    batch = inputs(model, count)
    assert torch.equal(logits(again.eval(), *batch), logits(model, *batch))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert load(tmp_path / "ours").config == loaded.config


def hub(name):
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    name = name.replace("model.language_model.", "language_model.model.").replace(
        "lm_head", "language_model.lm_head"
    )
    return name.replace("model.multi_modal_projector", "multi_modal_projector")


@pytest.mark.parametrize("spelling", ["memory", "hub", "mixed"])
def test_spellings_of_names_and_configs(tmp_path, parity, spelling):
    model, count = build("as published")
    model.save_pretrained(tmp_path)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    if spelling == "hub":
        state = {hub(key): value for key, value in state.items()}
    if spelling == "mixed":
        state = {hub(key) if "vision" in key else key.removeprefix("model."): v for key, v in state.items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["image_token_id"] = config.pop("image_token_index")
    config["text_config"]["architectures"] = ["LlamaForCausalLM"]
    config["vision_config"]["architectures"] = ["CLIPVisionModelWithProjection"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(parity, load(tmp_path), model, count, images=(1,))


def test_features_of_the_tower_and_projected_tokens(tmp_path, parity):
    model, count = build("two layers, no bias")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    _, _, pixels = inputs(model, count)
    with torch.no_grad():
        reference = torch.stack(list(model.get_image_features(torch.tensor(pixels)).pooler_output))
    images = jnp.asarray(pixels.transpose(0, 2, 3, 1))[:, None]
    media = jax.jit(model_of(loaded.config).encode_media)(loaded.params, {"image": Media(images)})["image"]
    parity.close(media.values, reference)


def test_defaults_that_hub_files_leave_out():
    """The config.json of llava-1.5-7b leaves most of the text and image configs to the defaults."""
    hf = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    }
    from mmjax.interop.huggingface import llava

    config = llava.FAMILY.config_from_hf(hf)
    assert config == llava.FAMILY.config_from_hf({**hf, "vision_config": None})
    assert config.num_tokens("image") == 576
    size = sum(
        np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(MultimodalLM(config).param_shapes())
    )
    reference = transformers.LlavaConfig(**{k: v for k, v in hf.items() if k != "model_type"})
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(reference)
    assert size == sum(parameter.numel() for parameter in model.parameters())


def test_errors_of_parts_and_of_weights(tmp_path):
    model, _ = build("as published")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_tower.embeddings.class_embedding"]
    weights["multi_modal_projector.linear_1.weight"] = np.zeros((36, 31), np.float32)
    weights["image_newline"] = np.zeros(36, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "1 missing" in message and "class_embedding" in message
    assert "1 left over" in message and "image_newline (36,)" in message
    assert "linear_1.weight is (36, 31), should be (36, 30)" in message
    config = json.loads((tmp_path / "config.json").read_text())
    for key, wrong in (("text_config", "bert"), ("vision_config", "pixtral")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: {"model_type": wrong}}))
        with pytest.raises(ConfigError, match=f"{key}.model_type '{wrong}' is not supported"):
            load(tmp_path)


def test_models_that_llava_cannot_express_are_not_exported(tmp_path):
    config = MultimodalLMConfig(
        DecoderConfig(50, 12, 2, 2, 1, 6, 20),
        {"image": ViTConfig(8, 4, 12, 1, 2, 16)},
        {"image": LinearProjectorConfig(12, 12)},
        {"image": 49},
    )
    with pytest.raises(ConfigError, match="projector of two linear maps.*LinearProjectorConfig"):
        save(tmp_path, config, MultimodalLM(config).param_shapes())
