"""The Q-Former against transformers' BLIP-2 and InstructBLIP, its masks against a table, items apart."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media, TextStream
from mmjax.infer.cache import unstack
from mmjax.interop.huggingface import qformer as names
from mmjax.interop.table import Row, export_params, import_params
from mmjax.projectors import PROJECTORS
from mmjax.projectors.qformer import QFormer, QFormerConfig, SelfBlock
from mmjax.projectors.qformer_masks import OBJECTIVES, objective_mask

HF = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=5,
    num_attention_heads=3,
    intermediate_size=37,
    max_position_embeddings=19,
    cross_attention_frequency=2,
    encoder_hidden_size=14,
    layer_norm_eps=1e-7,
)
CONFIG = QFormerConfig(
    in_width=14,
    width=10,
    num_queries=4,
    query_width=24,
    num_layers=5,
    num_heads=3,
    mlp_width=37,
    norm_eps=1e-7,
    vocab_size=43,
    max_positions=19,
)


def randomised(model):
    generator = torch.Generator().manual_seed(3)
    for leaf in model.parameters():
        leaf.data = 0.3 * torch.randn(leaf.shape, generator=generator) + (leaf.data.mean() > 0.5)
    return model.eval()


def imported(config, state, rows):
    """Params of a Q-Former (without queries and map) from their state dict, and back again as a check."""
    inputs = np.zeros((1, 2, 24)), 2, np.zeros((1, 1, 14))
    shapes = jax.eval_shape(lambda: QFormer(config).init(jax.random.key(0), *inputs))
    shapes = jax.tree.map(lambda box: box.value, shapes["params"], is_leaf=lambda box: hasattr(box, "names"))
    if config.vocab_size:
        like = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
        shapes = {**shapes, "embedding": like(43, 24), "position_embedding": like(19, 24)}
    state = {name: np.asarray(tensor) for name, tensor in state.items()}
    params = import_params(rows, state, shapes, ignore=names.IGNORE)
    exported = dict(export_params(rows, params))
    assert exported.keys() == state.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, state[name])
    return params


def stream(tokens, mask):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TextStream(tokens=tokens, positions=positions, segment_ids=mask.astype(np.int32))


@pytest.mark.parametrize("layers, frequency", [(5, 2), (4, 2), (2, 5)])
def test_equals_blip2(tools, random, layers, frequency):
    hf = {**HF, "num_hidden_layers": layers, "cross_attention_frequency": frequency}
    model = randomised(Blip2QFormerModel(Blip2QFormerConfig(**hf)))
    config = names.qformer_from_hf(hf, width=10, num_queries=4, reads_text=False)
    assert Blip2QFormerConfig(**names.qformer_to_hf(config)).to_dict() == {
        **Blip2QFormerConfig(**hf).to_dict(),
        "vocab_size": 30522,
    }
    params = imported(config, model.state_dict(), names.blip2_rows(config, "", ""))
    queries, features = random.normal(size=(3, 4, 24)), random.normal(size=(3, 7, 14))
    seen = np.arange(7) < np.array([7, 4, 1])[:, None]
    with torch.no_grad():
        theirs = model(
            query_embeds=torch.tensor(queries, dtype=torch.float32),
            encoder_hidden_states=torch.tensor(features, dtype=torch.float32),
            encoder_attention_mask=torch.tensor(seen).long(),
        ).last_hidden_state
    run = jax.jit(QFormer(config).apply, static_argnums=2)
    mine = run({"params": params}, queries, 4, features, None, seen)
    tools.close(mine, theirs)


@pytest.mark.parametrize("batch, left", [(1, False), (3, False), (3, True)])
def test_projector_equals_instructblip(tools, random, batch, left):
    model = randomised(InstructBlipQFormerModel(InstructBlipQFormerConfig(**HF)))
    queries, out = random.normal(size=(1, 4, 24)).astype(np.float32), random.normal(size=(10, 24)).astype(np.float32)
    bias = random.normal(size=10).astype(np.float32)
    state = {f"qformer.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"query_tokens": queries, "language_projection.weight": out, "language_projection.bias": bias}
    rows = names.instructblip_rows(CONFIG, "qformer/") + names.around_rows("")
    params = import_params(rows, {k: np.asarray(v) for k, v in state.items()}, tools.init(CONFIG, 6))
    assert {name for name, _ in export_params(rows, params)} == state.keys()
    tokens = random.integers(0, 43, (batch, 6)).astype(np.int32)
    mask = np.arange(6) < np.array([6, 3, 5])[:batch, None]
    mask = mask[:, ::-1].copy() if left else mask
    features = random.normal(size=(batch, 9, 14)).astype(np.float32)
    seen = np.arange(9) < np.array([9, 2, 5])[:batch, None]
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.cat([torch.ones(batch, 4, dtype=torch.long), torch.tensor(mask).long()], 1),
            query_embeds=torch.tensor(queries).expand(batch, -1, -1),
            encoder_hidden_states=torch.tensor(features),
            encoder_attention_mask=torch.tensor(seen).long(),
        ).last_hidden_state[:, :4]
    config = QFormerConfig(**{**vars(CONFIG), "num_features": 9})
    media = tools.run(config, params, features, segment_ids=seen.astype(np.int32), text=stream(tokens, mask))
    tools.close(media.values, theirs.numpy() @ out.T + bias)


def blip2_retrieval():
    vision = dict(hidden_size=14, intermediate_size=17, num_hidden_layers=1, num_attention_heads=2)
    vision |= dict(image_size=6, patch_size=3)
    text = dict(model_type="opt", vocab_size=43, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=9)
    config = Blip2Config(
        vision_config=vision,
        qformer_config={**HF, "use_qformer_text_input": True},
        text_config=text,
        num_query_tokens=4,
        image_text_hidden_size=11,
        image_token_index=None,
    )
    return randomised(Blip2ForImageTextRetrieval(config))


@pytest.mark.slow
def test_objectives_equal_blip2_retrieval(tools, random):
    model = blip2_retrieval()
    wanted = lambda name: name.startswith(("qformer.", "embeddings."))
    state = {name: tensor for name, tensor in model.state_dict().items() if wanted(name)}
    params = imported(CONFIG, state, names.blip2_rows(CONFIG, ""))
    pixels = torch.tensor(random.normal(size=(3, 3, 6, 6)), dtype=torch.float32)
    tokens = random.integers(0, 43, (3, 6)).astype(np.int32)
    mask = np.arange(6) < np.array([6, 3, 5])[:, None]
    inputs = dict(pixel_values=pixels, input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
    with torch.no_grad():
        features = model.vision_model(pixels).last_hidden_state.numpy()
        apart = model(**inputs)
        together = model(**inputs, use_image_text_matching_head=True)
    weight = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    project = lambda x, name: x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    module = jax.jit(QFormer(CONFIG).apply, static_argnums=2)
    params = {"params": params}
    text = QFormer(CONFIG).apply(params, tokens, np.broadcast_to(np.arange(6), (3, 6)), method="embed")
    both = np.concatenate([np.broadcast_to(weight["query_tokens"], (3, 4, 24)), text], axis=1)
    masks = {name: objective_mask(name, 4, mask) for name in OBJECTIVES}
    hidden = {name: np.asarray(module(params, both, 4, features, masks[name])) for name in OBJECTIVES}
    tools.close(unit(project(hidden["contrastive"][:, :4], "vision_projection")), apart.image_embeds)
    tools.close(unit(project(hidden["contrastive"][:, 4], "text_projection")), apart.text_embeds)
    tools.close(project(hidden["matching"][:, :4], "itm_head").mean(axis=1), together.logits_per_image)
    # No class of theirs generates text with the Q-Former; its encoder takes the mask as it is, though.
    seen = torch.tensor(np.asarray(masks["generation"]))[:, None]
    with torch.no_grad():
        theirs = model.qformer(
            torch.tensor(both), 4, attention_mask=seen, encoder_hidden_states=torch.tensor(features)
        ).last_hidden_state
    tools.close(hidden["generation"], theirs)
    # Text alone, as the contrastive loss may also be computed: the queries then play no part.
    alone = module(params, text, 0, mask=objective_mask("contrastive", 0, mask))
    tools.close(alone, hidden["contrastive"][:, 4:])


def test_masks_equal_a_table():
    mask = np.array([[1, 1, 1, 0], [0, 0, 1, 1]], bool)
    for objective in OBJECTIVES:
        mine = np.asarray(objective_mask(objective, 3, mask))
        assert mine.shape == (2, 7, 7)
        for b in range(2):
            for i in range(7):
                for j in range(7):
                    if objective == "contrastive":
                        allowed = (i < 3) == (j < 3)
                    elif objective == "matching":
                        allowed = True
                    else:
                        allowed = j < 3 if i < 3 else j <= i
                    assert mine[b, i, j] == (allowed and (j < 3 or mask[b, j - 3])), (objective, b, i, j)
    with pytest.raises(ConfigError, match="'captioning' is not one of"):
        objective_mask("captioning", 3, mask)


@pytest.mark.slow
def test_items_do_not_see_each_other_or_padding(tools, random):
    config = QFormerConfig(**{**vars(CONFIG), "vocab_size": None})
    params = tools.init(config, 6)
    lengths, rows = ((5, 3, 2), (4, 0, 0)), []
    packed = np.full((2, 12, 14), 1e6, np.float32)
    segments = np.zeros((2, 12), np.int32)
    expected = np.zeros((2, 3, 4, 10), np.float32)
    for b, row in enumerate(lengths):
        start = 0
        for item, length in enumerate(row):
            values = random.normal(size=(1, length, 14)).astype(np.float32)
            packed[b, start : start + length], segments[b, start : start + length] = values[0], item + 1
            start += length
            if length:
                alone = QFormerConfig(**{**vars(config), "num_features": length})
                expected[b, item] = tools.run(alone, params, values).values[0]
                rows.append((b, item))
    grid = np.zeros((2, 3, 3), np.int32)
    media = tools.run(config, params, packed, segment_ids=segments, grid=grid)
    np.testing.assert_array_equal(media.segment_ids, np.repeat([[1, 2, 3], [1, 0, 0]], 4, axis=1))
    mine = np.asarray(media.values).reshape(2, 3, 4, 10)
    for b, item in rows:
        tools.close(mine[b, item], expected[b, item])


def test_counts_and_errors(tools, random):
    config = QFormerConfig(**{**vars(CONFIG), "num_features": 9})
    assert config.num_tokens(9) == 4 and CONFIG.num_tokens(12345) == 4
    assert config.num_tokens(27) == 12  # three frames
    with pytest.raises(ConfigError, match="dropout must be in \\[0, 1\\), got 1"):
        QFormerConfig(14, 10, query_width=24, num_heads=3, dropout=1)
    assert CONFIG.cross_layers == (0, 2, 4)
    assert from_dict(QFormerConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="num_features is 9, but the encoder gives 10"):
        config.num_tokens(10)
    with pytest.raises(ConfigError, match="num_features is 9, but the encoder gives 0"):
        config.num_tokens(0)
    with pytest.raises(ConfigError, match="query_width 24 is not a multiple of num_heads 5"):
        QFormerConfig(14, 10, query_width=24, num_heads=5)
    with pytest.raises(ConfigError, match="cross_attention_frequency must be at least 1, got 0"):
        QFormerConfig(14, 10, cross_attention_frequency=0)
    params = tools.init(config, 9)
    with pytest.raises(ValueError, match="Media has no text"):
        tools.run(config, params, np.zeros((1, 9, 14)))
    with pytest.raises(ValueError, match="10 features are no whole number of items of 9"):
        tools.run(config, params, np.zeros((1, 10, 14)))
    with pytest.raises(ValueError, match="nothing says how many items 9 features are"):
        tools.run(CONFIG, params, np.zeros((1, 9, 14)))


def test_blocks_one_by_one_equal_the_stack(tools, random):
    """Decoding hands over a tuple of one tree a layer. Two frames of one item a row, with the row's text."""
    config = dataclasses.replace(CONFIG, num_features=9)
    params = tools.init(config, 9)
    features = random.normal(size=(2, 18, 14)).astype(np.float32)
    text = stream(random.integers(0, 43, (2, 6)), np.ones((2, 6)))
    segments = np.ones((2, 18), np.int32)
    segments[1, 9:] = 0
    wanted = tools.run(config, params, features, text=text, segment_ids=segments)
    np.testing.assert_array_equal(wanted.segment_ids, [[1] * 8, [1] * 4 + [0] * 4])
    tools.close(tools.run(config, unstack(params), features, text=text, segment_ids=segments).values, wanted.values)


def test_dropout_falls_on_what_layers_add(tools, random):
    """Off without the flag; with it, another key drops other numbers."""
    config = dataclasses.replace(CONFIG, num_layers=2, num_features=9, dropout=0.25)
    params = tools.init(config, 9)
    text = stream(random.integers(0, 43, (2, 6)), np.ones((2, 6)))
    media = Media(random.normal(size=(2, 9, 14)).astype(np.float32), stage="encoded", text=text)
    module = PROJECTORS[QFormerConfig](config)
    run = jax.jit(
        lambda params, train, key: module.apply({"params": params}, media, train, rngs={"dropout": key}).values,
        static_argnums=1,
    )
    off, one, two = (run(params, train, jax.random.key(seed)) for train, seed in ((False, 1), (True, 1), (True, 2)))
    np.testing.assert_array_equal(off, run(params, False, jax.random.key(2)))
    assert min(np.abs(one - off).max(), np.abs(one - two).max()) > 0.01
    np.testing.assert_array_equal(one, run(params, True, jax.random.key(1)))


def test_attention_drops_weights_in_training_alone(tools, random):
    """Nothing else is dropped here; frames of a row are read apart, so each has weights of its own to lose."""
    config = dataclasses.replace(CONFIG, num_layers=2, num_features=9, attention_dropout=0.4, vocab_size=None)
    params = tools.init(config, 9)
    frame = random.normal(size=(1, 9, 14)).astype(np.float32)
    media = Media(np.concatenate([frame, frame], axis=1), stage="encoded")

    def run(params, train, key, config=config):
        rngs = {} if key is None else {"dropout": key}
        return PROJECTORS[QFormerConfig](config).apply({"params": params}, media, train, rngs=rngs).values

    step = jax.jit(jax.vmap(lambda params, key: run(params, True, key), (None, 0)))
    plain = jax.jit(run, static_argnums=(1, 3))
    off = plain(params, False, None)
    np.testing.assert_array_equal(off, plain(params, False, None, dataclasses.replace(config, attention_dropout=0.0)))
    np.testing.assert_array_equal(off, plain(params, False, jax.random.key(1)))
    on = step(params, jax.random.split(jax.random.key(2), 3))
    np.testing.assert_array_equal(on, step(params, jax.random.split(jax.random.key(2), 3)))
    np.testing.assert_array_equal(off[:, :4], off[:, 4:])
    assert min(np.abs(on[0] - on[1]).max(), np.abs(on - off).max(), np.abs(on[:, :, :4] - on[:, :, 4:]).max()) > 0.01
    # A rate of nothing in a config that drops elsewhere changes nothing there.
    with_both = dataclasses.replace(config, attention_dropout=0.0, dropout=0.3)
    assert np.abs(plain(params, True, jax.random.key(1), with_both) - off).max() > 0.01


def test_rates_are_read_and_written():
    for rates in ((0.1, 0.1), (0.0, 0.3), (0.25, 0.0)):
        hf = {**HF, "hidden_dropout_prob": rates[0], "attention_probs_dropout_prob": rates[1]}
        config = names.qformer_from_hf(hf, width=10, num_queries=4, reads_text=False)
        assert (config.dropout, config.attention_dropout) == rates and config.drops
        again = Blip2QFormerConfig(**names.qformer_to_hf(config))
        assert (again.hidden_dropout_prob, again.attention_probs_dropout_prob) == rates
    left_out = Blip2QFormerConfig(**HF)
    config = names.qformer_from_hf(HF, width=10, num_queries=4, reads_text=True)
    assert config.attention_dropout == left_out.attention_probs_dropout_prob == 0.1
    with pytest.raises(ConfigError, match="attention_dropout must be in \\[0, 1\\), got 1.5"):
        dataclasses.replace(config, attention_dropout=1.5)


@pytest.mark.slow
def test_dropout_keeps_its_share_and_makes_up_for_the_rest(random):
    """A block that adds ones alone shows which of them are kept: three quarters, made larger by a third."""
    block = SelfBlock(dataclasses.replace(CONFIG, dropout=0.25))
    x = random.normal(size=(64, 10, 24)).astype(np.float32)
    params = jax.tree.map(np.zeros_like, nn.unbox(block.init(jax.random.key(0), x[:1, :2])["params"]))
    params["attn"]["o"]["bias"] = params["attn_norm"]["scale"] = np.ones(24, np.float32)
    out = lambda x: block.apply({"params": params}, x, None, method="attend", rngs={"dropout": jax.random.key(3)})
    kept = np.asarray(out(np.zeros_like(x))) > 0
    assert abs(kept.mean() - 0.75) < 0.015 and not (kept[0] == kept[1]).all()
    wanted = x + kept / 0.75
    wanted = (wanted - wanted.mean(axis=-1, keepdims=True)) / wanted.std(axis=-1, keepdims=True)
    np.testing.assert_allclose(out(x), wanted, atol=1e-4)


def test_rows_of_every_second_layer_name_those_layers():
    row = Row("cross", "layer.{i}.weight", layers=(1, 4))
    leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
    exported = dict(export_params([row], {"cross": leaf}))
    assert list(exported) == ["layer.1.weight", "layer.4.weight"]
    np.testing.assert_array_equal(import_params([row], exported, {"cross": leaf})["cross"], leaf)
