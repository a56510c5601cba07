"""Qwen2-VL to Qwen3-VL against transformers: packed images of odd shapes, videos, positions of three axes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from mmjax.config import ConfigError
from mmjax.data.items import TokenPlanError
from mmjax.interop.huggingface import FAMILIES, family_of, load, save

TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "mrope_section": [1, 3, 2], "rope_theta": 5000.0},
)
VISION = dict(depth=3, num_heads=3, patch_size=3, temporal_patch_size=2, spatial_merge_size=2)
IMAGE, VIDEO, START, END = 80, 81, 78, 79
TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)


def qwen2_vl(**text):
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, **text},
        vision_config=dict(VISION, embed_dim=24, hidden_size=36, mlp_ratio=2),
        **TOKENS,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl(**text):
    # Of the 14 pixels of a window, 12 count: 2 squares of 2 patches of 3 pixels.
    vision = dict(VISION, hidden_size=24, out_hidden_size=36, intermediate_size=29, tokens_per_second=3)
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **text}, vision_config=dict(vision, window_size=14, fullatt_block_indexes=[1]), **TOKENS
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(**text):
    vision = dict(VISION, hidden_size=24, out_hidden_size=36, intermediate_size=29, num_position_embeddings=25)
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 12, "num_hidden_layers": 3, **text},
        vision_config=dict(vision, deepstack_visual_indexes=[0, 1]),
        **TOKENS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def inputs_of(rows, left=True, seed=5, apart=False):
    """What the processor gives: each row is a list of grids; one of several frames is a video, in Qwen3-VL `apart`."""
    rng = np.random.default_rng(seed)
    bodies, grids = [], {IMAGE: [], VIDEO: []}
    for items in rows:
        body = list(rng.integers(1, 77, 2))
        for grid in items:
            token = VIDEO if grid[0] > 1 else IMAGE
            grids[token].append(grid)
            for frames in [1] * grid[0] if apart else grid[:1]:
                body += [START, *[token] * (frames * grid[1] * grid[2] // 4), END, *rng.integers(1, 77, 2)]
        bodies.append(body)
    length = max(map(len, bodies))
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for row, body in enumerate(bodies):
        part = slice(length - len(body), None) if left else slice(len(body))
        ids[row, part], mask[row, part] = body, 1
    inputs = dict(input_ids=ids, attention_mask=mask)
    inputs["mm_token_type_ids"] = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    for token, values, name in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        if grids[token]:
            inputs[name] = np.array(grids[token])
            inputs[values] = rng.normal(size=(inputs[name].prod(axis=1).sum(), 54)).astype(np.float32)
    return inputs


ROWS = [[(1, 6, 4)], [(1, 2, 10), (3, 4, 6), (1, 8, 2)], []]


def test_qwen2_vl(whole_system):
    """Images of four shapes, two of them and a video in one row, none in another; windows in the LLM."""
    reference = qwen2_vl(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    inputs = inputs_of(ROWS)
    model = whole_system.check(reference, inputs)
    assert model.config.backbone.sliding_window == 9 and model.config.positions_per_second is None
    assert set(model.params["encoders"]) == set(model.params["projectors"]) == {"image"}
    with pytest.raises(ValueError, match="as many patches as the grids"):
        model.batch(**{**inputs, "pixel_values": inputs["pixel_values"][:-1]})
    with pytest.raises(ConfigError, match="a frame of 3 x 8 patches"):
        model.batch(**{**inputs, "image_grid_thw": np.array([[1, 3, 8], [1, 2, 10], [1, 8, 2]])})
    with pytest.raises(TokenPlanError, match="row 0"):
        model.batch(**{**inputs, "image_grid_thw": np.array([[1, 2, 10], [1, 6, 4], [1, 8, 2]])})


def test_qwen2_5_vl(system):
    """Windows that the images cut off, a layer without, time in seconds; the same padded on the right."""
    reference = qwen2_5_vl()
    rows = [[(1, 6, 10)], [(3, 4, 6), (1, 2, 8)], []]
    inputs = {**inputs_of(rows), "second_per_grid_ts": np.array([0.7], np.float32)}
    right = {**inputs_of(rows, left=False), "second_per_grid_ts": np.array([0.7], np.float32)}
    model = system.check(reference, inputs)
    system.close(right, model(**right).logits, system.logits(reference, right))
    time = model.batch(**inputs).text.positions[1, :, 0]
    at = np.flatnonzero(inputs["input_ids"][1] == VIDEO)
    assert (time[at] - time[at[0]]).tolist() == np.repeat([0, 2, 4], 6).tolist()
    with pytest.raises(ValueError, match="second_per_grid_ts has 2 numbers, but there are 1 grids"):
        model.batch(**{**inputs, "second_per_grid_ts": np.array([0.7, 0.7])})


def test_qwen3_vl(system):
    """Frames apart in the text; features of two layers, so that one of the LLM's three has none added."""
    rows = [[(1, 6, 10)], [(3, 4, 6), (1, 2, 8)], []]
    inputs, right = inputs_of(rows, apart=True), inputs_of(rows, left=False, apart=True)
    reference = qwen3_vl()
    model = system.check(reference, inputs)
    system.close(right, model(**right).logits, system.logits(reference, right))
    assert model.config.projectors["video"].more == model.config.backbone.fusion.layers == 2
    assert len(model.batch(**inputs).media["video"].grid[1]) == 3


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_older_files(tmp_path, make):
    """The LLM's keys at the top and `mrope`, names of memory, names of a model without its output layer."""
    reference = make(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path / "theirs")
    wanted = load(tmp_path / "theirs")
    assert wanted.config.backbone.tie_embeddings

    text = {**reference.config.text_config.to_dict(), "rope_theta": 5000.0}
    del text["rope_parameters"], text["model_type"]
    vision = {**reference.config.vision_config.to_dict(), "in_chans": 3, "model_type": reference.config.model_type}
    del vision["in_channels"], vision["rope_parameters"]
    flat = {
        **{key: value for key, value in reference.config.to_dict().items() if key != "text_config"},
        **text,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 3, 2]},
    }
    memory = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    bare = {name.removeprefix("model."): array for name, array in memory.items() if name != "lm_head.weight"}
    assert "model.language_model.norm.weight" in memory and "visual.merger.ln_q.weight" in bare
    for number, arrays in enumerate((memory, bare)):
        place = tmp_path / str(number)
        place.mkdir()
        save_file(arrays, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(flat))
        loaded = load(place)
        assert loaded.config == wanted.config
        jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)

    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "hidden_size" not in written and written["text_config"]["rope_scaling"]["mrope_section"] == [1, 3, 2]
    again = type(reference.config).from_pretrained(tmp_path / "ours")
    for part in ("text_config", "vision_config"):
        old, new = (getattr(config, part).to_dict() for config in (reference.config, again))
        changed = {key: (old[key], new.get(key)) for key in old if old[key] != new.get(key)}
        assert set(changed) <= {"dtype", "architectures", "window_size"}, changed


def test_what_no_family_has():
    hf = qwen2_vl().config.to_dict()
    config = FAMILIES["qwen2_vl"].config_from_hf(hf)
    tower = dataclasses.replace(config.encoders["image"], gated=True)
    for change in ({"encoders": {"image": tower, "video": tower}}, {"positions_per_second": 2.0}, {"shared": {}}):
        with pytest.raises(ConfigError):
            family_of(dataclasses.replace(config, **change))
    for change, words in (
        ({"in_channels": 1}, "in_channels 1"),
        ({"hidden_size": 32}, "projectors.image.width is 32; the backbone's is 36"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo'"),
    ):
        with pytest.raises(ConfigError, match=words):
            FAMILIES["qwen2_vl"].config_from_hf({**hf, "vision_config": {**hf["vision_config"], **change}})
    hf = qwen3_vl().config.to_dict()
    for change, words in (
        ({"num_position_embeddings": 24}, "num_position_embeddings 24 is no square number"),
        ({"deepstack_visual_indexes": [1, 0]}, "must be one or more layers from first to last"),
        ({"deepstack_visual_indexes": [0, 3]}, "feature_layers: 4 is not among the 4 hidden states"),
    ):
        with pytest.raises(ConfigError, match=words):
            FAMILIES["qwen3_vl"].config_from_hf({**hf, "vision_config": {**hf["vision_config"], **change}})
