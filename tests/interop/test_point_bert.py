"""Point-BERT's names, read from the files of several projects and written back."""

import numpy as np
import pytest
import torch

from mmjax.encoders.dual import Tower
from mmjax.encoders.point_cloud import PointCloudConfig
from mmjax.interop.point_bert import export_point_bert, load_point_bert
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten

CONFIG = PointCloudConfig(21, 6, 7, 5, 12, 2, 3, 20, group_width=10, point_widths=(6, 9), position_width=11)


def state():
    """A state dict with the encoder's own shapes, as torch's layers have them, in fresh numbers."""
    layers = {
        "encoder.first_conv.0": torch.nn.Conv1d(6, 6, 1),
        "encoder.first_conv.1": torch.nn.BatchNorm1d(6),
        "encoder.first_conv.3": torch.nn.Conv1d(6, 9, 1),
        "encoder.second_conv.0": torch.nn.Conv1d(18, 18, 1),
        "encoder.second_conv.1": torch.nn.BatchNorm1d(18),
        "encoder.second_conv.3": torch.nn.Conv1d(18, 10, 1),
        "reduce_dim": torch.nn.Linear(10, 12),
        "pos_embed.0": torch.nn.Linear(3, 11),
        "pos_embed.2": torch.nn.Linear(11, 12),
        "norm": torch.nn.LayerNorm(12),
    }
    for layer in range(2):
        block = f"blocks.blocks.{layer}"
        layers |= {
            f"{block}.norm1": torch.nn.LayerNorm(12),
            f"{block}.norm2": torch.nn.LayerNorm(12),
            f"{block}.attn.qkv": torch.nn.Linear(12, 36, bias=False),
            f"{block}.attn.proj": torch.nn.Linear(12, 12),
            f"{block}.mlp.fc1": torch.nn.Linear(12, 20),
            f"{block}.mlp.fc2": torch.nn.Linear(20, 12),
        }
    found = {f"{name}.{key}": leaf for name, layer in layers.items() for key, leaf in layer.state_dict().items()}
    found |= {"cls_token": torch.zeros(1, 1, 12), "cls_pos": torch.zeros(1, 1, 12)}
    torch.manual_seed(0)
    return {name: torch.randn(leaf.shape) if leaf.ndim else leaf for name, leaf in found.items()}


@pytest.mark.parametrize("prefix", ["", "module.point_encoder.", "point_encoder.", "model.point_backbone."])
def test_there_and_back(tmp_path, prefix):
    tensors = state()
    others = {"module.visual.proj": torch.zeros(2)} if "." in prefix else {}
    torch.save({"state_dict": {prefix + name: leaf for name, leaf in tensors.items()} | others}, tmp_path / "a.pt")
    params = load_point_bert(tmp_path / "a.pt", CONFIG)
    shapes = flatten(Tower(CONFIG).param_shapes())
    assert {path: leaf.shape for path, leaf in flatten(params).items()} == {p: s.shape for p, s in shapes.items()}
    back = export_point_bert(params, CONFIG)
    assert set(back) == {name for name in tensors if not name.endswith("num_batches_tracked")}
    for name, leaf in back.items():
        np.testing.assert_array_equal(leaf, tensors[name].numpy(), err_msg=name)


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = state()
    del tensors["norm.weight"]
    tensors["norm.extra"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"(?s)1 missing:\n  norm.weight.*1 left over:\n  norm.extra"):
        load_point_bert(tmp_path / "a.pt", CONFIG)
