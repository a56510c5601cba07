"""EfficientNet against a PyTorch network written here from the paper's description."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.encoders.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    EfficientNetStage,
    _shifted_sum,
    pooled,
)
from mmjax.interop.efficientnet import load_efficientnet, table
from mmjax.interop.table import export_params
from mmjax.interop.tensors import WeightsError

STAGES = (
    EfficientNetStage(3, 1, 1, 5, 1),
    EfficientNetStage(5, 2, 3, 7, 2),
    EfficientNetStage(3, 2, 2, 11, 1),
)


def small(**changes) -> EfficientNetConfig:
    sizes = dict(image_size=37, resolution=37, stem_width=6, stages=STAGES, head_width=13)
    return EfficientNetConfig(**{**sizes, **changes})


def random_weights(config: EfficientNetConfig) -> dict[str, torch.Tensor]:
    """Weights in the names of the .pth file, with batch-norm statistics that matter."""
    generator = torch.Generator().manual_seed(0)
    width, number = config.stem_width, 0
    shapes = {"_conv_stem": (width, 3, 3, 3), "_bn0": (width,)}
    for stage in config.stages:
        for _ in range(stage.repeats):
            name, hidden = f"_blocks.{number}.", width * stage.expand
            if stage.expand != 1:
                shapes |= {f"{name}_expand_conv": (hidden, width, 1, 1), f"{name}_bn0": (hidden,)}
            kernel = (hidden, 1, stage.kernel, stage.kernel)
            shapes |= {f"{name}_depthwise_conv": kernel, f"{name}_bn1": (hidden,)}
            shapes |= {f"{name}_project_conv": (stage.width, hidden, 1, 1), f"{name}_bn2": (stage.width,)}
            number, width = number + 1, stage.width
    shapes |= {"_conv_head": (config.head_width, width, 1, 1), "_bn1": (config.head_width,)}
    weights = {}
    for name, shape in shapes.items():
        draw = lambda shape=shape: torch.randn(shape, generator=generator)  # noqa: E731
        if len(shape) > 1:
            weights[f"{name}.weight"] = draw() / np.sqrt(np.prod(shape[1:]))
        else:
            weights |= {f"{name}.weight": 1 + 0.3 * draw(), f"{name}.bias": 0.5 * draw()}
            weights |= {f"{name}.running_mean": 0.3 * draw(), f"{name}.running_var": 0.5 + draw() ** 2}
            weights[f"{name}.num_batches_tracked"] = torch.tensor(3)
    weights |= {"_fc.weight": torch.zeros(10, config.head_width), "_fc.bias": torch.zeros(10)}
    return weights


def reference(weights, config, x: torch.Tensor) -> list[torch.Tensor]:
    """x [B, 3, H, W] -> the head's output and every stage's, [B, C, H, W]."""

    def conv_norm(x, conv, norm, stride=1, groups=1):
        kernel = weights[f"{conv}.weight"]
        pads = []
        for length in reversed(x.shape[2:]):
            pad = max((-(-length // stride) - 1) * stride + kernel.shape[-1] - length, 0)
            pads += [pad // 2, pad - pad // 2]
        x = F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names), eps=config.norm_eps)

    x = F.relu6(conv_norm(x, "_conv_stem", "_bn0", 2))
    number, outputs = 0, []
    for stage in config.stages:
        for repeat in range(stage.repeats):
            name, y, stride = f"_blocks.{number}.", x, stage.stride if repeat == 0 else 1
            if stage.expand != 1:
                y = F.relu6(conv_norm(y, f"{name}_expand_conv", f"{name}_bn0"))
            y = F.relu6(conv_norm(y, f"{name}_depthwise_conv", f"{name}_bn1", stride, y.shape[1]))
            y = conv_norm(y, f"{name}_project_conv", f"{name}_bn2")
            x = x + y if stride == 1 and x.shape == y.shape else y
            number += 1
        outputs.append(x)
    return [F.relu6(conv_norm(x, "_conv_head", "_bn1")), *outputs]


def load(tmp_path, config):
    weights = random_weights(config)
    torch.save(weights, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    return weights, load_efficientnet(tmp_path / "weights.pth", config)


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, media):
    return EfficientNet(config).apply({"params": params}, media)


def close(ours, theirs, tolerance=1e-4):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.sqrt(np.mean(theirs**2))))
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * scale


@pytest.mark.quick("45")
@pytest.mark.parametrize("size", [32, 37, 45])
def test_features_equal_torch(tmp_path, size):
    config = small(image_size=size, resolution=size)
    weights, params = load(tmp_path, config)
    images = np.random.default_rng(size).normal(size=(2, 3, size, size, 3)).astype(np.float32)
    segments = np.array([[1, 2, 3], [1, 2, 0]], np.int32)
    flat = torch.from_numpy(images.reshape(6, size, size, 3).transpose(0, 3, 1, 2))
    outputs = reference(weights, config, flat)

    features = apply(config, params, Media(images, segment_ids=segments))
    assert features.stage == "encoded"
    pools = [F.adaptive_avg_pool2d(part, n).flatten(2) for part in outputs for n in (1, 2)]
    parts = [torch.cat(pair, 2).transpose(1, 2) for pair in zip(pools[::2], pools[1::2], strict=True)]
    close(features.values, torch.cat(parts, 2).reshape(2, 15, config.feature_width))
    np.testing.assert_array_equal(features.segment_ids[1], [1] * 5 + [2] * 5 + [0] * 5)

    grid = small(image_size=size, resolution=size, pool="none")
    features = apply(grid, params, Media(images))
    assert grid.num_tokens() == outputs[0].shape[2] * outputs[0].shape[3]
    close(features.values, outputs[0].flatten(2).transpose(1, 2).reshape(2, -1, 13))


@pytest.mark.parametrize(("kernel", "stride", "shape"), [(3, 1, (9, 6)), (5, 2, (4, 7)), (3, 2, (1, 3))])
def test_shifted_sum_equals_grouped_convolution(kernel, stride, shape):
    random = np.random.default_rng(1)
    x = random.normal(size=(2, *shape, 5)).astype(np.float32)
    weight = random.normal(size=(kernel, kernel, 1, 5)).astype(np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, weight, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=5
    )
    close(_shifted_sum(jnp.asarray(x), weight, stride), np.asarray(expected), 1e-5)


def test_images_are_resized_as_pillow_does(tmp_path):
    """Bicubic upscaling inside the encoder gives the features of an image that Pillow has resized."""
    config = small(image_size=19, resolution=37)
    _, params = load(tmp_path, config)
    image = np.random.default_rng(2).normal(size=(19, 19, 3)).astype(np.float32)
    channels = [Image.fromarray(image[..., i]).resize((37, 37), Image.Resampling.BICUBIC) for i in range(3)]
    resized = np.stack([np.asarray(channel) for channel in channels], -1)
    ours = apply(config, params, Media(image[None, None]))
    close(ours.values, np.asarray(apply(config, params, Media(resized[None, None])).values))


def test_pooled_of_odd_sizes_equals_adaptive_pooling():
    x = np.random.default_rng(3).normal(size=(2, 7, 5, 3)).astype(np.float32)
    theirs = F.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    close(pooled(jnp.asarray(x))[:, 1:], theirs, 1e-5)


def test_weights_go_back_unchanged(tmp_path):
    weights, params = load(tmp_path, small())
    exported = dict(export_params(table(small()), params))
    ignored = {name for name in weights if "num_batches" in name or name.startswith("_fc")}
    assert set(exported) == set(weights) - ignored
    for name, array in exported.items():
        np.testing.assert_array_equal(array, weights[name].numpy())


def test_weights_of_another_size_are_named(tmp_path):
    load(tmp_path, small())
    with pytest.raises(WeightsError, match=r"_conv_head\.weight.*\(14, 11, 1, 1\)"):
        load_efficientnet(tmp_path / "weights.pth", small(head_width=14))


def test_defaults_are_lite0():
    config = EfficientNetConfig()
    assert (config.feature_width, config.num_tokens(), config.grid_size) == (2064, 5, 7)
    assert EfficientNetConfig(pool="none").num_tokens() == 49
    init = lambda: EfficientNet(config).init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), method="create")  # noqa: E731
    params = jax.eval_shape(init)["params"]
    # 4.65 million with its classifier of 1000 classes; mean and variance count as no parameters there.
    leaves = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(params)}
    trained = sum(size for path, size in leaves.items() if "mean" not in path and "var" not in path)
    assert trained + 1281 * 1000 == 4_652_008


def test_config_round_trip_and_errors():
    config = small(pool="none")
    assert from_dict(EfficientNetConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="pool"):
        EfficientNetConfig(pool="max")
    with pytest.raises(ConfigError, match="stages"):
        EfficientNetConfig(stages=())
