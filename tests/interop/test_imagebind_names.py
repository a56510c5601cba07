"""ImageBind's names: read from a file of its repository's kind, whole or in part, and written back."""

import numpy as np
import pytest
import torch

from mmjax.encoders.imagebind import ImageBindTowerConfig
from mmjax.encoders.joint import ImageBind, ImageBindConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.interop.imagebind import MASK, export_imagebind, load_imagebind
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten

SIZES = {"vision": 12, "audio": 10, "depth": 6, "thermal": 8, "imu": 12, "text": 8}
HEADS = 2
CONFIG = ImageBindConfig(
    {
        "vision": ImageBindTowerConfig(
            "vision", (1, 9, 13, 3), (2, 4, 4), 12, 2, 2, 20, 7, patch_norm=False, pre_norm=True, extra_key=False
        ),
        "audio": ImageBindTowerConfig("audio", (15, 11), (4, 4), 10, 2, 2, 20, 7, stride=(3, 3), logit_scale=20.0),
        "depth": ImageBindTowerConfig("depth", (9, 8, 1), (4, 4), 6, 2, 2, 20, 7, logit_scale=5.0),
        "thermal": ImageBindTowerConfig("thermal", (8, 12, 1), (4, 4), 8, 2, 2, 20, 7, logit_scale=10.0),
        "imu": ImageBindTowerConfig("imu", (13, 6), (4,), 12, 2, 2, 20, 7, logit_scale=5.0),
    },
    TextEncoderConfig(31, 8, 2, 2, 20, max_positions=9, activation="gelu", norm_eps=1e-6, projection_dim=7),
)
STEMS = {
    "vision": ("rgbt_stem.proj.1", torch.nn.Conv3d(3, 12, (2, 4, 4), bias=False)),
    "audio": ("rgbt_stem.proj", torch.nn.Conv2d(1, 10, 4, bias=False)),
    "depth": ("depth_stem.proj", torch.nn.Conv2d(1, 6, 4, bias=False)),
    "thermal": ("rgbt_stem.proj", torch.nn.Conv2d(1, 8, 4, bias=False)),
    "imu": ("imu_stem.proj", torch.nn.Linear(24, 12, bias=False)),
}
TOKENS = {"vision": 7, "audio": 13, "depth": 5, "thermal": 7, "imu": 4}


def state():
    """A state dict as the repository's model of these sizes has it, its layers being torch's own."""
    layers, found = {}, {}
    for name, width in SIZES.items():
        before, head = f"modality_preprocessors.{name}.", f"modality_heads.{name}."
        if name == "text":
            layers |= {
                f"{before}token_embedding": torch.nn.Embedding(31, width),
                f"{head}proj.0": torch.nn.LayerNorm(width),
                f"{head}proj.1": torch.nn.Linear(width, 7, bias=False),
            }
            found[f"{before}pos_embed"] = torch.zeros(1, 9, width)
        else:
            stem, layer = STEMS[name]
            layers |= {
                f"{before}{stem}": layer,
                f"{head}0": torch.nn.LayerNorm(width),
                f"{head}{3 if name == 'imu' else 2}": torch.nn.Linear(width, 7, bias=False),
            }
            found[f"{before}cls_token"] = torch.zeros(1, 1, width)
            positions = "pos_embed" if name == "imu" else "pos_embedding_helper.pos_embed"
            found[f"{before}{positions}"] = torch.zeros(1, TOKENS[name], width)
        if name not in ("vision", "text"):
            layers[before + STEMS[name][0].replace("proj", "norm_layer")] = torch.nn.LayerNorm(width)
        if name == "vision":
            layers["modality_trunks.vision.pre_transformer_layer.0"] = torch.nn.LayerNorm(width)
        else:
            found[f"modality_postprocessors.{name}.1.log_logit_scale"] = torch.zeros(())
        for number in range(2):
            block = f"modality_trunks.{name}.blocks.{number}."
            extra = name not in ("vision", "text")
            layers |= {
                f"{block}attn": torch.nn.MultiheadAttention(width, HEADS, add_bias_kv=extra),
                f"{block}norm_1": torch.nn.LayerNorm(width),
                f"{block}norm_2": torch.nn.LayerNorm(width),
                f"{block}mlp.fc1": torch.nn.Linear(width, 20),
                f"{block}mlp.fc2": torch.nn.Linear(20, width),
            }
    found |= {f"{name}.{key}": leaf for name, layer in layers.items() for key, leaf in layer.state_dict().items()}
    torch.manual_seed(0)
    mask = torch.full((9, 9), float("-inf")).triu(1)
    return {name: torch.randn(leaf.shape) for name, leaf in found.items()} | {MASK: mask}


def test_there_and_back(tmp_path):
    tensors = state()
    torch.save(tensors, tmp_path / "imagebind.pth")
    params = load_imagebind(tmp_path / "imagebind.pth", CONFIG)
    shapes = flatten(ImageBind(CONFIG).param_shapes())
    assert {path: leaf.shape for path, leaf in flatten(params).items()} == {p: s.shape for p, s in shapes.items()}
    back = export_imagebind(params, CONFIG)
    assert set(back) == set(tensors)
    for name, leaf in back.items():
        np.testing.assert_array_equal(leaf, tensors[name].numpy(), err_msg=name)


def test_some_towers_of_a_file(tmp_path):
    tensors = state()
    torch.save(tensors, tmp_path / "imagebind.pth")
    config = ImageBindConfig({"imu": CONFIG.media["imu"]})
    params = load_imagebind(tmp_path / "imagebind.pth", config)
    assert set(params) == {"imu"}
    # Their rows are channels by samples, ours samples by channels.
    kernel = tensors["modality_preprocessors.imu.imu_stem.proj.weight"].numpy()
    np.testing.assert_array_equal(params["imu"]["patch_embed"]["kernel"], kernel.reshape(12, 6, 4).transpose(2, 1, 0))


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = state()
    del tensors["modality_trunks.audio.blocks.1.attn.bias_k"]
    tensors["modality_heads.text.proj.2.weight"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "imagebind.pth")
    with pytest.raises(WeightsError, match=r"(?s)1 missing:\n.*blocks.1.attn.bias_k.*1 left over:\n.*text.proj.2"):
        load_imagebind(tmp_path / "imagebind.pth", CONFIG)
