"""ImageBind's weights by the names of its own repository's state dict (imagebind_huge.pth).

https://github.com/facebookresearch/ImageBind, imagebind/models.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.encoders.imagebind import ImageBindTowerConfig
from mmjax.encoders.joint import ImageBind, ImageBindConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.interop.table import (
    CONV,
    FLAT,
    IDENTITY,
    LINEAR,
    Linear,
    Part,
    Row,
    Squeezed,
    export_params,
    import_params,
    in_memory,
)
from mmjax.interop.tensors import Tensors
from mmjax.interop.torch_legacy import read_pth

# The text tower's causal mask is stored with the weights, though it is none.
MASK = "modality_preprocessors.text.mask"
# What each modality's patch map is called inside its preprocessor.
STEMS = {
    "vision": "rgbt_stem.proj.1",
    "audio": "rgbt_stem.proj",
    "depth": "depth_stem.proj",
    "thermal": "rgbt_stem.proj",
    "imu": "imu_stem.proj",
}


@dataclasses.dataclass(frozen=True)
class _FlatWindow:
    """Ours [*window, in, out], theirs [out, in * window]: a torch.nn.Linear over windows laid out by channel."""

    def theirs_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return (ours[-1], math.prod(ours[:-1]))

    def to_ours(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        return CONV.to_ours(theirs.reshape(CONV.theirs_shape(ours)), ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return CONV.to_theirs(ours).reshape(self.theirs_shape(ours.shape))


@dataclasses.dataclass(frozen=True)
class _HeadsInOne:
    """Ours [H, C], theirs [1, 1, H * C]."""

    def theirs_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return (1, 1, math.prod(ours))

    def to_ours(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        return theirs.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(1, 1, -1)


def table(config: ImageBindConfig) -> list[Row]:
    """Rows of every leaf of ImageBind's towers."""
    rows = []
    for name, tower in config.media.items():
        rows += _media_rows(name, tower)
    if config.text is not None:
        rows += _text_rows(config.text)
    return rows


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def _blocks(ours: str, theirs: str, width: int) -> list[Row]:
    """Rows of a trunk's blocks without extra keys."""
    rows, sizes = [], (width,) * 3
    for index, name in enumerate("qkv"):
        rows += [
            Row(f"{ours}/attn/{name}/kernel", f"{theirs}.attn.in_proj_weight", Part(index, sizes, LINEAR)),
            Row(f"{ours}/attn/{name}/bias", f"{theirs}.attn.in_proj_bias", Part(index, sizes, FLAT)),
        ]
    rows += [
        Row(f"{ours}/attn/o/kernel", f"{theirs}.attn.out_proj.weight", Linear(2)),
        Row(f"{ours}/attn/o/bias", f"{theirs}.attn.out_proj.bias"),
    ]
    for mine, name in (("up", "fc1"), ("down", "fc2")):
        rows += [
            Row(f"{ours}/mlp/{mine}/kernel", f"{theirs}.mlp.{name}.weight", LINEAR),
            Row(f"{ours}/mlp/{mine}/bias", f"{theirs}.mlp.{name}.bias"),
        ]
    return rows + _norm(f"{ours}/attn_norm", f"{theirs}.norm_1") + _norm(f"{ours}/mlp_norm", f"{theirs}.norm_2")


def _media_rows(name: str, tower: ImageBindTowerConfig) -> list[Row]:
    before, trunk = f"modality_preprocessors.{name}", f"modality_trunks.{name}"
    head, after = f"modality_heads.{name}", f"modality_postprocessors.{name}"
    stem, positions = STEMS[name], "pos_embed" if name == "imu" else "pos_embedding_helper.pos_embed"
    # Motion alone has dropout between its head's choice of the class token and the map.
    last = 3 if name == "imu" else 2
    rows = [
        Row(f"{name}/class_embedding", f"{before}.cls_token", Squeezed((0, 1))),
        Row(f"{name}/position_embedding", f"{before}.{positions}", Squeezed((0,))),
        Row(f"{name}/patch_embed/kernel", f"{before}.{stem}.weight", _FlatWindow() if name == "imu" else CONV),
        *_blocks(f"{name}/blocks", f"{trunk}.blocks.{{i}}", tower.width),
        *_norm(f"{name}/post_norm", f"{head}.0"),
        Row(f"{name}/projection/kernel", f"{head}.{last}.weight", LINEAR),
    ]
    if tower.patch_norm:
        rows += _norm(f"{name}/patch_norm", f"{before}.{stem.split('.')[0]}.norm_layer")
    if tower.pre_norm:
        rows += _norm(f"{name}/pre_norm", f"{trunk}.pre_transformer_layer.0")
    if tower.extra_key:
        for mine, theirs in (("extra_key", "bias_k"), ("extra_value", "bias_v")):
            rows.append(Row(f"{name}/blocks/{mine}", f"{trunk}.blocks.{{i}}.attn.{theirs}", _HeadsInOne()))
    if tower.logit_scale is not None:
        rows.append(Row(f"{name}/logit_scale", f"{after}.1.log_logit_scale", IDENTITY))
    return rows


def _text_rows(tower: TextEncoderConfig) -> list[Row]:
    before, head = "modality_preprocessors.text", "modality_heads.text.proj"
    return [
        Row("text/embed/embedding", f"{before}.token_embedding.weight"),
        Row("text/position_embedding", f"{before}.pos_embed", Squeezed((0,))),
        *_blocks("text/blocks", "modality_trunks.text.blocks.{i}", tower.width),
        *_norm("text/final_norm", f"{head}.0"),
        Row("text/projection/kernel", f"{head}.1.weight", LINEAR),
        Row("text_scale", "modality_postprocessors.text.1.log_logit_scale"),
    ]


def import_imagebind(tensors: Tensors, config: ImageBindConfig) -> dict[str, Any]:
    """Params of the towers in `config`, float32, from named tensors; those of other towers are passed over.

    Raises:
        WeightsError: the tensors of these towers do not fit `config`; every one is listed.
    """
    names = ImageBind(config).names
    own = {name: tensor for name, tensor in tensors.items() if name.split(".")[1:2] and name.split(".")[1] in names}
    return import_params(table(config), own, ImageBind(config).param_shapes(), put=in_memory, ignore=(MASK,))


def load_imagebind(path: str | os.PathLike, config: ImageBindConfig) -> dict[str, Any]:
    """Params of the towers in `config` from a .pth file.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is damaged, or its tensors do not fit `config`; every one is listed.
    """
    return import_imagebind(read_pth(path), config)


def export_imagebind(params: Mapping[str, Any], config: ImageBindConfig) -> dict[str, np.ndarray]:
    """The towers' tensors by their repository's names, the text tower's mask among them.

    Raises:
        WeightsError: the params do not fit `config`.
    """
    tensors = dict(export_params(table(config), params))
    if config.text is not None:
        size = config.text.max_positions
        tensors[MASK] = np.triu(np.full((size, size), -np.inf, np.float32), 1)
    return tensors
