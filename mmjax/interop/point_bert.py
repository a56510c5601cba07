"""Weights of Point-BERT's transformer by the names that the checkpoints of ULIP-2 and PointLLM have.

Names are those of the encoder itself; checkpoints put `point_encoder.` (ULIP-2) or `point_backbone.` (PointLLM)
before them. https://github.com/OpenRobotLab/PointLLM, pointllm/model/pointbert.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.encoders.dual import Tower
from mmjax.encoders.point_cloud import PointCloudConfig
from mmjax.interop.table import (
    FLAT,
    LINEAR,
    Linear,
    Part,
    Row,
    Squeezed,
    export_params,
    import_params,
    in_memory,
    rename,
)
from mmjax.interop.tensors import Tensors
from mmjax.interop.torch_legacy import read_pth

# Counters that only training reads.
IGNORED = (r".*\.num_batches_tracked",)
PREFIXES = (r"^module\.", r"^point_encoder\.", r"^model\.point_backbone\.", r"^point_backbone\.")
_TOKENS = {"class_embedding": "cls_token", "class_position": "cls_pos"}
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def table(config: PointCloudConfig) -> list[Row]:
    """Rows of every leaf of a point cloud transformer; paths are relative to the encoder."""
    rows = [Row(ours, name, Squeezed((0, 1))) for ours, name in _TOKENS.items()]
    for number, name in enumerate(("first_conv.0", "first_conv.3", "second_conv.0", "second_conv.3"), start=1):
        rows += _conv(f"group_embed/point_{number}", f"encoder.{name}")
    for ours, stage in (("norm_1", "first"), ("norm_2", "second")):
        rows += [Row(f"group_embed/{ours}/{mine}", f"encoder.{stage}_conv.1.{name}") for mine, name in _NORM.items()]
    for ours, name in (("reduce", "reduce_dim"), ("position_1", "pos_embed.0"), ("position_2", "pos_embed.2")):
        rows += _linear(ours, name)
    rows += _layer_norm("post_norm", "norm")
    block, sizes = "blocks.blocks.{i}.", (config.width,) * 3
    for index, name in enumerate("qkv"):
        ours = f"blocks/attn/{name}"
        rows.append(Row(f"{ours}/kernel", f"{block}attn.qkv.weight", Part(index, sizes, LINEAR)))
        if config.qkv_bias:
            rows.append(Row(f"{ours}/bias", f"{block}attn.qkv.bias", Part(index, sizes, FLAT)))
    rows += [
        Row("blocks/attn/o/kernel", f"{block}attn.proj.weight", Linear(2)),
        Row("blocks/attn/o/bias", f"{block}attn.proj.bias"),
        *_layer_norm("blocks/attn_norm", f"{block}norm1"),
        *_layer_norm("blocks/mlp_norm", f"{block}norm2"),
    ]
    return rows + _linear("blocks/mlp/up", f"{block}mlp.fc1") + _linear("blocks/mlp/down", f"{block}mlp.fc2")


@dataclasses.dataclass(frozen=True)
class _PointConv:
    """Ours [in, out], theirs (a torch.nn.Conv1d over single points) [out, in, 1]."""

    def theirs_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return (ours[1], ours[0], 1)

    def to_ours(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        return theirs[..., 0].T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.T[..., None]


def _conv(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", _PointConv()), Row(f"{ours}/bias", f"{theirs}.bias")]


def _linear(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]


def _layer_norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def import_point_bert(tensors: Tensors, config: PointCloudConfig) -> dict[str, Any]:
    """Params of the encoder, float32, from named tensors, with or without a checkpoint's prefixes.

    Raises:
        WeightsError: they do not fit `config`; every one is listed.
    """
    tensors = rename(tensors, [(prefix, "") for prefix in PREFIXES])
    return import_params(table(config), tensors, Tower(config).param_shapes(), put=in_memory, ignore=IGNORED)


def load_point_bert(path: str | os.PathLike, config: PointCloudConfig) -> dict[str, Any]:
    """Params of the encoder from a .pt or .pth file of ULIP-2 or of the encoder alone; other parts are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is damaged, or its tensors do not fit `config`; every one is listed.
    """
    tensors = read_pth(path)
    own = {name: tensor for name, tensor in tensors.items() if "point_encoder." in name or "point_backbone." in name}
    return import_point_bert(own or tensors, config)


def export_point_bert(params: Mapping[str, Any], config: PointCloudConfig) -> dict[str, np.ndarray]:
    """The encoder's tensors by their names, without a prefix.

    Raises:
        WeightsError: the params do not fit `config`.
    """
    return dict(export_params(table(config), params))
