"""Pixel shuffle, patch merger and pooling against transformers' connectors, and packed grids against a loop."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.interop.table import LINEAR, Row, import_params
from mmjax.projectors.downsample import MergeConfig, PoolConfig


def randomised(model):
    generator = torch.Generator().manual_seed(3)
    for leaf in model.parameters():
        leaf.data = 0.3 * torch.randn(leaf.shape, generator=generator) + (leaf.data.mean() > 0.5)
    return model.eval()


def imported(tools, config, model, names, num_features):
    """Params by our leaf's module -> their module."""
    rows = []
    state = {name: np.asarray(tensor) for name, tensor in model.state_dict().items()}
    for mine, theirs in names.items():
        kernel = "scale" if mine == "norm" else "kernel"
        rows.append(Row(f"{mine}/{kernel}", f"{theirs}.weight", *([] if mine == "norm" else [LINEAR])))
        if f"{theirs}.bias" in state:
            rows.append(Row(f"{mine}/bias", f"{theirs}.bias"))
    return import_params(rows, state, tools.init(config, num_features))


@pytest.mark.parametrize("side, factor", [(6, 3), (4, 2)])
def test_equals_idefics3(tools, random, side, factor):
    part = lambda width: SimpleNamespace(hidden_size=width)
    model = randomised(
        Idefics3Connector(SimpleNamespace(scale_factor=factor, vision_config=part(7), text_config=part(10)))
    )
    config = MergeConfig(7, 10, factor, (side, side), bias=False)
    params = imported(tools, config, model, {"out": "modality_projection.proj"}, side * side)
    features = random.normal(size=(2, 2 * side * side, 7)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), side * side, axis=1)
    media = tools.run(config, params, features, segment_ids=segments)
    with torch.no_grad():
        theirs = model(torch.tensor(features.reshape(4, side * side, 7))).reshape(2, -1, 10)
    tools.close(media.values, theirs)
    each = config.num_tokens(side * side)
    np.testing.assert_array_equal(media.segment_ids, np.repeat([[1, 2], [1, 0]], each, axis=1))


def test_equals_internvl_on_a_grid_that_is_not_square(tools, random):
    part = lambda width: SimpleNamespace(hidden_size=width)
    hf = SimpleNamespace(
        downsample_ratio=0.5, projector_hidden_act="gelu", vision_config=part(7), text_config=part(10)
    )
    model = randomised(InternVLMultiModalProjector(hf))
    config = MergeConfig(7, 10, 2, (4, 6), norm_at="after", norm_eps=1e-5, hidden=10)
    names = {"norm": "layer_norm", "fc1": "linear_1", "fc2": "linear_2"}
    params = imported(tools, config, model, names, 24)
    features = random.normal(size=(1, 24, 7)).astype(np.float32)
    with torch.no_grad():
        shuffled = InternVLModel.pixel_shuffle(None, torch.tensor(features).reshape(1, 4, 6, 7), 0.5)
        theirs = model(shuffled.reshape(1, 6, 28))
    tools.close(tools.run(config, params, features).values, theirs)


MERGERS = {
    "qwen2_vl": (lambda: PatchMerger(10, 7, 2), {"norm_at": "before"}, ("ln_q", "mlp.0", "mlp.2")),
    "qwen2_5_vl": (
        lambda: Qwen2_5_VLPatchMerger(10, 7, 2),
        {"norm_at": "before", "norm": "rms"},
        ("ln_q", "mlp.0", "mlp.2"),
    ),
    "qwen3_vl, deepstack": (
        lambda: Qwen3VLVisionPatchMerger(
            SimpleNamespace(hidden_size=7, spatial_merge_size=2, out_hidden_size=10), use_postshuffle_norm=True
        ),
        {"norm_at": "after"},
        ("norm", "linear_fc1", "linear_fc2"),
    ),
}


@pytest.mark.parametrize("name", MERGERS)
def test_equals_qwen_patch_mergers(tools, random, name):
    make, options, (norm, first, second) = MERGERS[name]
    model = randomised(make())
    config = MergeConfig(7, 10, order="blocks", hidden=28, **options)
    params = imported(tools, config, model, {"norm": norm, "fc1": first, "fc2": second}, 16)
    features = random.normal(size=(2, 16, 7)).astype(np.float32)
    segments = np.array([[1] * 4 + [2] * 8 + [0] * 4, [1] * 16], np.int32)
    media = tools.run(config, params, features, segment_ids=segments)
    with torch.no_grad():
        tools.close(media.values, model(torch.tensor(features).reshape(-1, 7)).reshape(2, 4, 10))
    np.testing.assert_array_equal(media.segment_ids, [[1, 2, 2, 0], [1] * 4])


def test_packed_grids_of_several_shapes(tools, random):
    config = MergeConfig(3, 5, 2, norm_at="after")
    params = tools.init(config, 4)
    grids = np.array([[(1, 2, 4), (2, 4, 2), (1, 2, 2)], [(1, 4, 6), (0, 0, 0), (0, 0, 0)]], np.int32)
    features = random.normal(size=(2, 32, 3)).astype(np.float32)
    segments = np.zeros((2, 32), np.int32)
    expected = np.zeros((2, 8, 12), np.float32)
    for b, row in enumerate(grids):
        start, token = 0, 0
        for item, (frames, height, width) in enumerate(row):
            for frame in range(frames):
                for y in range(0, height, 2):
                    for x in range(0, width, 2):
                        at = start + frame * height * width + y * width + x
                        square = [at, at + 1, at + width, at + width + 1]
                        expected[b, token] = features[b, square].reshape(-1)
                        token += 1
            size = frames * height * width
            segments[b, start : start + size] = item + 1
            start += size
    media = tools.run(config, params, features, segment_ids=segments, grid=grids)
    np.testing.assert_array_equal(media.segment_ids, [[1, 1, 2, 2, 2, 2, 3, 0], [1] * 6 + [0, 0]])
    shuffled = tools.run(MergeConfig(3, 5, 2, order="blocks", norm_at="after"), params, expected.reshape(2, 32, 3))
    real = np.asarray(media.segment_ids) > 0
    tools.close(np.asarray(media.values)[real], np.asarray(shuffled.values)[real], 1e-5)
    assert [config.num_tokens(int(np.prod(grid)), tuple(grid)) for grid in grids[0]] == [2, 4, 1]
    # Alone, on the grid that the config says, an item becomes the same tokens.
    alone = MergeConfig(**{**vars(config), "grid": (4, 2)})
    tools.close(tools.run(alone, params, features[:1, 8:24]).values, media.values[:1, 2:6], 1e-5)


def test_pooling_equals_llava_onevision(tools, random):
    # Theirs pools what its two maps gave, to sides halved and rounded up.
    config = PoolConfig(7, 10, (5, 5), (3, 3), "bilinear", hidden=10)
    params = tools.init(config, 25)
    features = random.normal(size=(1, 50, 7)).astype(np.float32)
    tensor = lambda name, leaf: torch.tensor(params[name][leaf])
    x = torch.tensor(features).reshape(2, 25, 7) @ tensor("fc1", "kernel") + tensor("fc1", "bias")
    x = torch.nn.functional.gelu(x) @ tensor("fc2", "kernel") + tensor("fc2", "bias")
    here = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=70, patch_size=14)))
    theirs = LlavaOnevisionModel.apply_pooling(here, x).reshape(1, 18, 10)
    tools.close(tools.run(config, params, features).values, theirs)


@pytest.mark.parametrize("first", [False, True])
def test_average_pooling(tools, random, first):
    config = PoolConfig(7, 10, (5, 4), (2, 3), pool_first=first, hidden=6)
    params = tools.init(config, 20)
    features = random.normal(size=(1, 20, 7)).astype(np.float32)
    segments = np.ones((1, 20), np.int32)
    maps = {name: {leaf: torch.tensor(array) for leaf, array in params[name].items()} for name in params}

    def project(x):
        x = torch.nn.functional.gelu(x @ maps["fc1"]["kernel"] + maps["fc1"]["bias"])
        return x @ maps["fc2"]["kernel"] + maps["fc2"]["bias"]

    def pool(x):
        return torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (2, 3)).permute(0, 2, 3, 1)

    x = torch.tensor(features).reshape(1, 5, 4, 7)
    theirs = project(pool(x)) if first else pool(project(x))
    media = tools.run(config, params, features, segment_ids=segments)
    tools.close(media.values, theirs.reshape(1, 6, 10))
    np.testing.assert_array_equal(media.segment_ids, np.ones((1, 6)))


def test_counts_and_errors(tools):
    merge, pool = MergeConfig(7, 10, 2, (4, 6)), PoolConfig(7, 10, (5, 4), (2, 3))
    assert merge.num_tokens(24) == 6 and merge.num_tokens(72, (3, 4, 6)) == 18
    assert pool.num_tokens(20) == 6 and pool.num_tokens(60) == 18
    assert MergeConfig(7, 10, 3, order="blocks").num_tokens(36) == 4
    assert from_dict(MergeConfig, to_dict(merge)) == merge and from_dict(PoolConfig, to_dict(pool)) == pool
    with pytest.raises(ConfigError, match="grid of 5 x 4 features is not divisible by factor 2"):
        MergeConfig(7, 10, 2, (5, 4))
    with pytest.raises(ConfigError, match="grid of 4 x 5 features is not divisible by factor 2"):
        MergeConfig(7, 10).num_tokens(20, (1, 4, 5))
    with pytest.raises(ConfigError, match="25 features are no whole number of 4 x 6 grids of 24"):
        merge.num_tokens(25)
    with pytest.raises(ConfigError, match="19 features are no whole number of 4 x 5 grids of 20"):
        MergeConfig(7, 10).num_tokens(19, (1, 4, 5))
    with pytest.raises(ConfigError, match="35 features are no whole number of 3 x 3 squares"):
        MergeConfig(7, 10, 3, order="blocks").num_tokens(35)
    with pytest.raises(ConfigError, match="24 features in rows need a grid"):
        MergeConfig(7, 10).num_tokens(24)
    with pytest.raises(ConfigError, match="grids of 5 x 4, but the item has 4 x 5"):
        pool.num_tokens(20, (1, 4, 5))
    params = tools.init(merge, 24)
    with pytest.raises(ValueError, match="25 features are no whole number of 4 x 6 grids"):
        tools.run(merge, params, np.zeros((1, 25, 7)))
    with pytest.raises(ValueError, match="24 features in rows need a grid"):
        tools.run(MergeConfig(7, 10), params, np.zeros((1, 24, 7)))
    with pytest.raises(ValueError, match="26 features are no whole number of 2 x 2 squares"):
        tools.run(MergeConfig(7, 10, order="blocks"), params, np.zeros((1, 26, 7)))
