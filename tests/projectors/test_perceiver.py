"""The Perceiver resampler against transformers' Idefics and Idefics2; frames, padding, counts."""

import numpy as np
import pytest
import torch
from transformers import Idefics2Config, IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.interop.table import LINEAR, Linear, Row, import_params
from mmjax.projectors.perceiver import PerceiverConfig

SMALL = dict(num_latents=5, num_layers=2, num_heads=3, num_kv_heads=3, head_dim=6)
PLAIN = PerceiverConfig(14, 14, latent_width=14, mlp_width=56, **SMALL)


def randomised(model):
    generator = torch.Generator().manual_seed(3)
    for leaf in model.parameters():
        leaf.data = 0.3 * torch.randn(leaf.shape, generator=generator) + (leaf.data.mean() > 0.5)
    return model.eval()


def norm(ours, theirs):
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_equals_idefics(tools, random, qk_norm):
    hf = IdeficsConfig(
        vision_config={"embed_dim": 14}, perceiver_config={"qk_layer_norms_perceiver": qk_norm}
    )
    model = randomised(IdeficsPerceiverResampler(hf, 14, 2, 3, 6, 5))
    config = PerceiverConfig(**{**vars(PLAIN), "qk_norm": qk_norm, "num_features": 7})
    attn, mlp = "blocks.{i}.0.", "blocks.{i}.1."
    rows = [
        Row("latents", "latents"),
        *norm("norm", "layer_norm"),
        *norm("blocks/attn_norm", f"{attn}latents_layer_norm"),
        *norm("blocks/context_norm", f"{attn}context_layer_norm"),
        *norm("blocks/mlp_norm", f"{mlp}ln"),
        *(Row(f"blocks/attn/{name}/kernel", f"{attn}{name}_proj.weight", LINEAR) for name in "qkv"),
        Row("blocks/attn/o/kernel", f"{attn}output_proj.weight", Linear(2)),
        Row("blocks/mlp/up/kernel", f"{mlp}fc.weight", LINEAR),
        Row("blocks/mlp/down/kernel", f"{mlp}c_proj.weight", LINEAR),
    ]
    if qk_norm:
        rows += norm("blocks/attn/q_norm", f"{attn}q_layer_norm")
        rows += norm("blocks/attn/k_norm", f"{attn}k_layer_norm")
    state = {name: np.asarray(tensor) for name, tensor in model.state_dict().items()}
    params = import_params(rows, state, tools.init(config, 7))
    features = random.normal(size=(3, 7, 14)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(features))
    tools.close(tools.run(config, params, features).values, theirs)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_equals_idefics2_with_padding(tools, random, kv_heads):
    hf = Idefics2Config(
        perceiver_config=dict(
            hidden_size=18,
            resampler_n_latents=5,
            resampler_depth=2,
            resampler_n_heads=4,
            resampler_head_dim=6,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
        ),
        vision_config=dict(hidden_size=14, num_attention_heads=2),
        text_config=dict(model_type="mistral", hidden_size=18, intermediate_size=23, rms_norm_eps=1e-5),
    )
    hf.perceiver_config._attn_implementation = "eager"
    model = randomised(Idefics2Connector(hf))
    config = PerceiverConfig(
        in_width=14,
        width=18,
        num_latents=5,
        latent_width=18,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=6,
        mlp_width=72,
        activation="silu",
        gated=True,
        norm="rms",
        norm_eps=1e-5,
        input_map="gated_mlp",
        input_hidden=23,
        num_features=9,
    )
    body = "perceiver_resampler."
    layer = body + "layers.{i}."
    mlps = (("input", "modality_projection"), ("blocks/mlp", f"{layer}mlp"))
    norms = (("attn", "input_latents_norm"), ("context", "input_context_norm"), ("mlp", "post_attention_layernorm"))
    rows = [
        Row("latents", f"{body}latents"),
        Row("norm/scale", f"{body}norm.weight"),
        *(Row(f"blocks/{mine}_norm/scale", f"{layer}{name}.weight") for mine, name in norms),
        *(Row(f"blocks/attn/{name}/kernel", f"{layer}self_attn.{name}_proj.weight", LINEAR) for name in "qkv"),
        Row("blocks/attn/o/kernel", f"{layer}self_attn.o_proj.weight", Linear(2)),
        *(
            Row(f"{mine}/{name}/kernel", f"{theirs}.{name}_proj.weight", LINEAR)
            for mine, theirs in mlps
            for name in ("gate", "up", "down")
        ),
    ]
    state = {name: np.asarray(tensor) for name, tensor in model.state_dict().items()}
    params = import_params(rows, state, tools.init(config, 9))
    features = random.normal(size=(3, 9, 14)).astype(np.float32)
    seen = np.arange(9) < np.array([9, 4, 1])[:, None]
    with torch.no_grad():
        theirs = model(torch.tensor(features), torch.tensor(seen))
    mine = tools.run(config, params, features, segment_ids=seen.astype(np.int32))
    tools.close(mine.values, theirs)
    # What padding features hold makes no difference.
    other = np.where(seen[..., None], features, 1e6)
    tools.close(tools.run(config, params, other, segment_ids=seen.astype(np.int32)).values, theirs)


def test_order_counts_only_between_frames(tools, random):
    options = dict(max_frames=4, frame_features=3, num_features=9)
    config = PerceiverConfig(**{**vars(PLAIN), **options, "width": 11, "output_map": True})
    params = tools.init(config, 9)
    assert params["frame_embedding"].shape == (4, 14)
    features = random.normal(size=(1, 3, 3, 14)).astype(np.float32)
    run = lambda x: np.asarray(tools.run(config, params, x.reshape(1, 9, 14)).values)
    whole = run(features)
    assert whole.shape == (1, 5, 11)
    tools.close(run(features[:, :, ::-1]), whole)
    assert np.abs(run(features[:, ::-1]) - whole).max() > 1e-2
    # The embedding is simply added: the same features with it added by hand, through a model that has none.
    plain = PerceiverConfig(**{**vars(config), "max_frames": 0, "frame_features": 0})
    rest = {name: leaf for name, leaf in params.items() if name != "frame_embedding"}
    added = features + params["frame_embedding"][:3, None]
    tools.close(tools.run(plain, rest, added.reshape(1, 9, 14)).values, whole)


def test_several_items_and_linear_input(tools, random):
    config = PerceiverConfig(
        9, 14, latent_width=14, mlp_width=11, input_map="linear", num_features=4, **SMALL
    )
    params = tools.init(config, 4)
    features = random.normal(size=(2, 8, 9)).astype(np.float32)
    segments = np.array([[1] * 4 + [2] * 4, [1] * 3 + [0] * 5], np.int32)
    media = tools.run(config, params, features, segment_ids=segments)
    np.testing.assert_array_equal(media.segment_ids, [[1] * 5 + [2] * 5, [1] * 5 + [0] * 5])
    for item in range(2):
        alone = tools.run(config, params, features[:1, 4 * item : 4 * item + 4])
        tools.close(media.values[:1, 5 * item : 5 * item + 5], alone.values)
    short = PerceiverConfig(**{**vars(config), "num_features": 3})
    tools.close(media.values[1:, :5], tools.run(short, params, features[1:, :3]).values)


def test_counts_and_errors():
    assert PLAIN.num_tokens(1) == PLAIN.num_tokens(1000, (2, 20, 25)) == 5
    assert from_dict(PerceiverConfig, to_dict(PLAIN)) == PLAIN
    make = lambda **options: PerceiverConfig(**{**vars(PLAIN), **options})
    with pytest.raises(ConfigError, match="num_features is 9, but the encoder gives 10"):
        make(num_features=9).num_tokens(10)
    with pytest.raises(ConfigError, match="10 features are not 1 to 4 frames of 3"):
        make(max_frames=4, frame_features=3, num_features=10)
    with pytest.raises(ConfigError, match="15 features are not 1 to 4 frames of 3"):
        make(max_frames=4, frame_features=3, num_features=15)
    with pytest.raises(ConfigError, match="in_width 13 must be latent_width 14"):
        make(in_width=13)
    with pytest.raises(ConfigError, match="latent_width 14 must be width 15"):
        make(width=15)
    with pytest.raises(ConfigError, match="num_heads 3 is not a multiple of num_kv_heads 2"):
        make(num_kv_heads=2)
    with pytest.raises(ConfigError, match="input_hidden 0 does not fit input_map 'gated_mlp'"):
        make(input_map="gated_mlp")
