"""A generator and its encoder from a checkpoint of their own, beside a language model from random weights."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError, from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.interop.segmenter import Segmenter, SegmenterConfig
from mmjax.model import MultimodalLM
from mmjax.paths import flatten
from mmjax.recipes.assemble import InitConfig, TrainConfig, _pretrained, assemble
from mmjax.segmenter_model import SegmenterModel


def test_a_segmenter_becomes_the_generator(tmp_path):
    config = from_dict(TrainConfig, to_plain(load_config("lisa:tiny")))
    parts = SegmenterConfig(config.model.generator_encoders["mask"], config.model.generators["mask"])
    random = np.random.default_rng(0)
    shapes = Segmenter(parts).param_shapes()
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
    SegmenterModel(parts, params).save_pretrained(tmp_path)
    init = dataclasses.replace(config.init, generators={"mask": str(tmp_path)})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, made, processor = assemble(dataclasses.replace(config, init=init), mesh)
    assert flatten(made).keys() == flatten(model.param_shapes()).keys()
    for part, name in (("decoder", "generators"), ("encoder", "generator_encoders")):
        jax.tree.map(np.testing.assert_array_equal, made[name]["mask"], params[part])
    assert processor.tokenizer.token_id("[SEG]") == config.model.signal_tokens["mask"][0]

    wrong = dataclasses.replace(init, generators={"masks": str(tmp_path)})
    with pytest.raises(ConfigError, match="no port 'masks'"):
        assemble(dataclasses.replace(config, init=wrong), mesh)
    decoder = dataclasses.replace(config.model.generators["mask"], iou_width=8)
    other = dataclasses.replace(config.model, generators={"mask": decoder})
    with pytest.raises(ConfigError, match="model.generators.mask .* iou_width"):
        assemble(dataclasses.replace(config, init=init, model=other), mesh)


def test_the_tower_of_images_that_are_found_comes_from_clip(tmp_path):
    config = from_dict(TrainConfig, to_plain(load_config("fromage:tiny")))
    tower = config.model.generator_encoders["image_out"]
    sizes = dict(
        hidden_size=tower.width, intermediate_size=tower.mlp_width, num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.num_heads, image_size=tower.image_size, patch_size=tower.patch_size,
    )  # fmt: skip
    reference = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    reference.save_pretrained(tmp_path / "clip")
    found = _pretrained(dataclasses.replace(config, init=InitConfig(generators={"image_out": str(tmp_path / "clip")})))
    shapes = flatten(MultimodalLM(config.model).param_shapes())
    assert {path for path in shapes if path.startswith("generator_encoders/")} == found.keys()
    wanted = dict(reference.named_parameters())
    name = next(name for name in wanted if name.endswith("class_embedding"))
    mine = found["generator_encoders/image_out/class_embedding"]
    np.testing.assert_array_equal(mine.reshape(-1), wanted[name].detach())
    narrow = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**{**sizes, "intermediate_size": 8}))
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ConfigError, match="model.generator_encoders.image_out .* mlp_width"):
        _pretrained(dataclasses.replace(config, init=InitConfig(generators={"image_out": str(tmp_path / "narrow")})))
