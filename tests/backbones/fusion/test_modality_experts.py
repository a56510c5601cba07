"""Modality experts against a slow implementation in both routings, and the stages that switch them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.modality_experts import ModalityExpertsConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.moe import load_balancing_loss
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.train.losses import next_token_loss
from mmjax.train.stage import StageConfig, adapt

VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
PLAIN = DecoderConfig(31, 12, 2, 6, 2, 4, 20, max_positions=32)
FUSION = ModalityExpertsConfig(num_experts=3, rank=2, alpha=3.0, top_k=2)
CONFIG = MultimodalLMConfig(
    dataclasses.replace(PLAIN, fusion=FUSION),
    {"image": VIT, "sound": VIT},
    dict.fromkeys(("image", "sound"), LinearProjectorConfig(8, 12)),
    {"image": 29, "sound": 30},
)
MODEL = MultimodalLM(CONFIG)
STAGE = StageConfig("s", 1, 1, (("backbone/fusion/.*", "train"),), fusion={"routing": "modality"})
# Rows: an image; a sound; both; text alone.
INDEX = np.full((4, 10), -1, np.int32)
INDEX[0, 2:6], INDEX[1, 1:5], INDEX[2, 1:5], INDEX[2, 6:10] = range(4), range(4, 8), range(4), range(4, 8)
TOKENS = np.random.default_rng(0).integers(0, 29, INDEX.shape).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 4, 1, 6, 6, 3)).astype(np.float32)


def batch(tokens=TOKENS, index=INDEX):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index)
    return Batch({"text": text}, {"image": Media(PIXELS[0]), "sound": Media(PIXELS[1])})


@pytest.fixture(scope="module")
def params(slow):
    return slow.drawn(MODEL)


def test_the_balance_of_its_routers(params, slow):
    """Logits of every layer are those of a slow router; their loss is Mixtral's of them, its gradient torch's."""
    text = batch().text
    # The last rows are padded, differently far.
    seen = (np.arange(10) < np.array([10, 10, 8, 5])[:, None]).astype(np.int32)
    rows = batch().replace(texts={"text": dataclasses.replace(text, segment_ids=seen)})

    @jax.jit
    def run(params):
        media = MODEL.encode_media(params, rows.media)
        embeddings = MODEL.embed(params, rows.text, media)
        hidden, logits = MODEL.forward(params, rows.texts, media, router_logits=True)
        total, aux = next_token_loss(MODEL, params, rows, router_weight=0.3)
        plain, _ = next_token_loss(MODEL, params, rows)
        return embeddings, hidden, logits, (total - plain) / aux["weight"], aux["router_loss"] / aux["weight"], aux

    embeddings, hidden, logits, added, loss, aux = run(params)
    assert logits.shape == (2, 4, 10, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(jax.jit(MODEL.__call__)(params, rows).hidden, hidden, atol=1e-6)
    # What the second layer's router reads has been through the first one's experts: the blocks are run one by one.
    kernel = np.asarray(params["backbone"]["fusion"]["blocks"]["router"]["kernel"])
    decoder, read = slow.Decoder(PLAIN, params["backbone"]), []
    experts = decoder_feed(params, decoder, lambda z, own: routed(decoder, z, own))
    decoder.feed = lambda layer, h, mlp: read.append(h @ kernel[layer]) or experts(layer, h, mlp)
    decoder(np.asarray(embeddings[0]))
    np.testing.assert_allclose(np.stack(read), logits[:, 0], atol=1e-4)

    gates = tuple(torch.tensor(np.asarray(layer).reshape(40, 3)) for layer in logits)
    wanted = load_balancing_loss_func(gates, 3, 2, torch.tensor(seen))
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(added, 0.3 * wanted.item(), rtol=1e-4)
    assert 1 <= aux["router_load"] / aux["weight"] <= 3 / 2
    theirs = torch.tensor(np.asarray(logits), requires_grad=True)
    load_balancing_loss_func(tuple(layer.reshape(40, 3) for layer in theirs), 3, 2, torch.tensor(seen)).backward()
    mine = jax.grad(lambda logits: load_balancing_loss(logits, 2, seen > 0))(logits)
    np.testing.assert_allclose(mine, theirs.grad, atol=1e-6)
    by_rows = adapt(MODEL, params, STAGE)[0]
    with pytest.raises(ConfigError, match="backbone.fusion does not route"):
        next_token_loss(by_rows, params, rows, router_weight=0.3)


def routed(decoder, z, own):
    """Weights of the experts of a token as the router gives them."""
    odds = decoder.softmax(z @ own["router"]["kernel"])
    odds = np.where(odds >= np.sort(odds)[-2], odds, 0)
    return odds / odds.sum()


def decoder_feed(params, decoder, weigh):
    """What stands in the MLPs' place, a token and an expert at a time; `weigh` gives a token's weights."""
    fusion = params["backbone"]["fusion"]["blocks"]

    def feed(layer, h, mlp):
        own, text = decoder.at(fusion, layer), decoder.at(params["backbone"]["blocks"], layer)["mlp"]
        out = np.zeros_like(h)
        for at, z in enumerate(h):
            weights = weigh(z, own)
            for expert in range(3):
                kernels = {
                    name: text[name]["kernel"] + 1.5 * own[name]["lora_a"][expert] @ own[name]["lora_b"][expert]
                    for name in ("gate", "up", "down")
                }
                gate = z @ kernels["gate"]
                inner = gate / (1 + np.exp(-gate)) * (z @ kernels["up"])
                out[at] += weights[expert] * (inner @ kernels["down"])
        return out

    return feed


@pytest.mark.parametrize("routing", ["router", "modality"])
def test_against_a_slow_implementation(params, slow, routing):
    model = MODEL if routing == "router" else adapt(MODEL, params, STAGE)[0]
    embed = jax.jit(lambda params, batch: model.embed(params, batch.text, model.encode_media(params, batch.media)))
    embeddings = embed(params, batch())
    got = jax.jit(model.__call__)(params, batch()).hidden
    by_row = [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [1 / 3] * 3]
    for row in range(4):
        decoder = slow.Decoder(PLAIN, params["backbone"])
        ways = {"router": lambda z, own, d=decoder: routed(d, z, own), "modality": lambda z, own, r=row: by_row[r]}
        decoder.feed = decoder_feed(params, decoder, ways[routing])
        np.testing.assert_allclose(got[row], decoder(embeddings[row]), rtol=0, atol=1e-4)


def test_fresh_experts_are_the_text_model(slow):
    """Every expert is the text's MLP; their weights have sum 1."""
    params = slow.fresh(MODEL)
    backbone = {name: part for name, part in params["backbone"].items() if name != "fusion"}
    plain = MultimodalLM(dataclasses.replace(CONFIG, backbone=PLAIN))
    wanted = jax.jit(plain.__call__)({**params, "backbone": backbone}, batch()).logits
    np.testing.assert_allclose(jax.jit(MODEL.__call__)(params, batch()).logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_stage_of_one_modality_trains_its_expert_alone(params):
    model, tree = adapt(MODEL, params, STAGE)
    assert model.config.backbone.fusion.routing == "modality" and tree is params

    @jax.jit
    @jax.grad
    def gradient(fusion):
        whole = {**params, "backbone": {**params["backbone"], "fusion": fusion}}
        rows = jax.tree.map(lambda leaf: leaf[1:2], batch())
        return jnp.mean(jnp.square(model(whole, rows).logits))

    found = gradient(params["backbone"]["fusion"])["blocks"]
    for name in ("gate", "up", "down"):
        for leaf in found[name].values():
            moved = np.abs(leaf).reshape(2, 3, -1).max(axis=(0, 2)) > 0
            assert moved.tolist() == [False, True, False]
    assert np.abs(found["router"]["kernel"]).max() == 0


@pytest.mark.slow
def test_decoding(params):
    model = adapt(MODEL, params, STAGE)[0]
    forward = jax.jit(model.__call__)
    out = generate(model, params, batch(), GenerateOptions(max_new_tokens=2))
    tokens, index = (np.pad(a, ((0, 0), (0, 2)), constant_values=-1) for a in (TOKENS, INDEX))
    for step in range(2):
        scores = forward(params, batch(np.maximum(tokens, 0), index)).logits
        tokens[:, 10 + step] = scores[:, 9 + step].argmax(axis=-1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, 10 + step])


def test_what_cannot_be(params):
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="fusion.top_k must be from 1 to num_experts 3, got 4"):
        dataclasses.replace(FUSION, top_k=4)
    with pytest.raises(ConfigError, match="needs a plain MLP"):
        dataclasses.replace(CONFIG.backbone, sub_norm=True)
    with pytest.raises(ConfigError, match="lora.targets must leave out gate, up, down"):
        dataclasses.replace(CONFIG.backbone, lora=LoRAConfig(2, 2.0))
    for fusion, message in (
        ({"rooting": "modality"}, "unknown key 'rooting'"),
        ({"rank": 5}, "parameters hang on it"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapt(MODEL, params, dataclasses.replace(STAGE, fusion=fusion))
    plain = MultimodalLM(dataclasses.replace(CONFIG, backbone=PLAIN))
    with pytest.raises(ConfigError, match="the backbone has no fusion"):
        adapt(plain, params, STAGE)
    with pytest.raises(ValueError, match="2 ports of media, but fusion.num_experts is 1"):
        few = dataclasses.replace(CONFIG.backbone, fusion=ModalityExpertsConfig(1, 2, 3.0, 1))
        model = MultimodalLM(dataclasses.replace(CONFIG, backbone=few))
        jax.eval_shape(model, model.param_shapes(), batch())
