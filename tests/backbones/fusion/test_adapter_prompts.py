"""Adapter prompts against peft's, and as properties: the text model at first, media, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.interop.huggingface import load
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

# An image of one patch becomes one token.
VIT = ViTConfig(
    image_size=3, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
BACKBONE = DecoderConfig(31, 12, 3, 6, 2, 4, 20, max_positions=32, fusion=AdapterPromptsConfig(5, 2))
CONFIG = MultimodalLMConfig(BACKBONE, {"image": VIT}, {"image": LinearProjectorConfig(8, 12)}, inside=("image",))
MODEL = MultimodalLM(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 7)).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 1, 3, 3, 3)).astype(np.float32)


def batch(tokens=TOKENS, seen=(1, 1), pixels=PIXELS):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    attention = np.broadcast_to(np.array(seen, bool)[:, None, None], (*tokens.shape, 1))
    text = TextStream(tokens, positions, np.ones_like(tokens), media_attention=attention)
    return Batch({"text": text}, {"image": Media(pixels)})


logits = jax.jit(lambda params, batch: MODEL(params, batch).logits)


@pytest.fixture(scope="module")
def fresh(slow):
    return slow.fresh(MODEL)


@pytest.fixture(scope="module")
def params(fresh):
    """With gates that are open, each to another part."""
    blocks = fresh["backbone"]["fusion"]["blocks"]
    assert blocks["gate"].shape == (2, 6) and blocks["prompts"].shape == (2, 5, 12)
    gate = jax.random.normal(jax.random.key(3), (2, 6))
    return {**fresh, "backbone": {**fresh["backbone"], "fusion": {"blocks": {**blocks, "gate": gate}}}}


def test_a_fresh_model_is_its_text_model_bit_for_bit(fresh):
    plain = MultimodalLM(MultimodalLMConfig(dataclasses.replace(BACKBONE, fusion=None)))
    backbone = {name: part for name, part in fresh["backbone"].items() if name != "fusion"}
    wanted = jax.jit(plain.__call__)({"backbone": backbone}, batch().replace(media={})).logits
    np.testing.assert_array_equal(logits(fresh, batch()), wanted)


def test_what_the_prompts_read_of_media(params):
    whole = logits(params, batch())
    other = logits(params, batch(pixels=PIXELS + np.array([1, 0], np.float32)[:, None, None, None, None]))
    assert np.abs(other[0] - whole[0]).min(axis=-1).max() > 1e-4
    np.testing.assert_array_equal(other[1], whole[1])
    # A row that sees no image has its prompts as they are.
    blind = logits(params, batch(seen=(0, 1)))
    np.testing.assert_array_equal(blind[1], whole[1])
    np.testing.assert_allclose(
        blind[0], logits(params, batch(seen=(0, 1), pixels=PIXELS * 3))[0], rtol=0, atol=1e-6
    )
    assert np.abs(blind[0] - whole[0]).max() > 1e-4


@pytest.mark.slow
def test_unstacked_blocks_and_decoding(params):
    whole = logits(params, batch())
    np.testing.assert_allclose(logits(unstack(params), batch()), whole, atol=1e-5)
    out = generate(MODEL, params, batch(), GenerateOptions(max_new_tokens=3))
    tokens = TOKENS
    for step in range(3):
        scores = logits(params, batch(np.pad(tokens, ((0, 0), (0, 10 - tokens.shape[1])))))
        tokens = np.concatenate([tokens, scores[:, tokens.shape[1] - 1].argmax(axis=-1)[:, None]], axis=1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, -1])


def test_every_leaf_gets_a_gradient(params):
    @jax.jit
    @jax.grad
    def gradient(fusion):
        tree = {**params, "backbone": {**params["backbone"], "fusion": fusion}}
        return jnp.mean(jnp.square(MultimodalLM(CONFIG, remat="full")(tree, batch()).logits))

    found = gradient(params["backbone"]["fusion"])
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(found))


def test_peft(tmp_path):
    """The same prompts and gates in peft's model of a Llama with grouped heads."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=34, num_hidden_layers=3, num_attention_heads=6)
    config = transformers.LlamaConfig(vocab_size=47, num_key_value_heads=2, **sizes)
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    theirs = peft.get_peft_model(
        llama, peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM")
    ).eval()  # fmt: skip
    found = {"prompts": [], "gate": []}
    with torch.no_grad():
        for name, leaf in theirs.named_parameters():
            if "adaption_gate" in name:
                leaf.normal_()
                found["gate"].append(leaf.numpy().copy())
            elif "adaption_prompt" in name:
                found["prompts"].append(leaf[0].numpy().copy())
        wanted = theirs(input_ids=torch.as_tensor(TOKENS, dtype=torch.long)).logits.numpy()
    fusion = AdapterPromptsConfig(4, 2, gate="layer", squash=False)
    config = MultimodalLMConfig(dataclasses.replace(loaded.config.backbone, fusion=fusion))
    blocks = {name: jnp.asarray(np.stack(leaves)) for name, leaves in found.items()}
    backbone = {**loaded.params["backbone"], "fusion": {"blocks": blocks}}
    mine = jax.jit(MultimodalLM(config).__call__)({"backbone": backbone}, batch().replace(media={})).logits
    plain = jax.jit(MultimodalLM(loaded.config).__call__)(loaded.params, batch().replace(media={})).logits
    assert np.abs(plain - wanted).max() > 1e-3
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.sqrt(np.mean(wanted**2)))))


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="fusion.layers is 4, backbone.num_layers 3"):
        dataclasses.replace(BACKBONE, fusion=AdapterPromptsConfig(5, 4))
    with pytest.raises(ConfigError, match="fusion.num_prompts must be at least 1"):
        AdapterPromptsConfig(0, 1)
    with pytest.raises(ValueError, match="one media token a row, got 2"):
        jax.eval_shape(MODEL, MODEL.param_shapes(), batch(pixels=np.repeat(PIXELS, 2, axis=1)))
