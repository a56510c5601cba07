"""A generator's parts taken from a pipeline's directory, and signals that the tokenizer must know."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.interop import diffusers as interop
from mmjax.interop import huggingface
from mmjax.model import MultimodalLMConfig
from mmjax.output_projectors import MLPOutputConfig
from mmjax.paths import flatten
from mmjax.recipes.assemble import InitConfig, ProcessorConfig, TrainConfig, assemble, make_processor


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4, bos_token_id=18, eos_token_id=19,
    )  # fmt: skip
    for name, part in {"unet": unet, "vae": vae, "text_encoder": transformers.CLIPTextModel(text)}.items():
        part.save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def config(pipeline):
    unet, vae = (interop.load(pipeline / name).config for name in ("unet", "vae"))
    return TrainConfig(
        "drawing",
        {},
        MultimodalLMConfig(
            DecoderConfig(264, 8, 1, 2, 2, 4, 8),
            generators={"image_out": DiffusionConfig(unet, vae)},
            output_projectors={"image_out": MLPOutputConfig(8, 8, 8)},
            signal_tokens={"image_out": (258, 259)},
            generator_encoders={"image_out": huggingface.load(pipeline / "text_encoder").config},
        ),
        init=InitConfig(generators={"image_out": str(pipeline)}),
        processor=ProcessorConfig(
            tokenizer="bytes", placeholders={"image_out": "[IMG0]"}, signals={"image_out": ("[IMG0]", "[IMG1]")},
        ),
    )  # fmt: skip


def test_parts_are_those_of_the_directory(config, pipeline):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, params, processor = assemble(config, mesh)
    for part, folder in {"denoiser": "unet", "autoencoder": "vae"}.items():
        for path, leaf in flatten(interop.load(pipeline / folder).params).items():
            found = flatten(params["generators"]["image_out"][part])[path]
            np.testing.assert_array_equal(found, leaf, err_msg=path)
    for path, leaf in flatten(huggingface.load(pipeline / "text_encoder").params).items():
        np.testing.assert_array_equal(flatten(params["generator_encoders"]["image_out"])[path], leaf, err_msg=path)
    assert processor.signals == {"image_out": (258, 259)}
    assert processor.tokenizer.token_id("[IMG1]") == 259


def test_what_does_not_fit_is_named(config):
    generator = config.model.generators["image_out"]
    wider = dataclasses.replace(generator.denoiser, norm_eps=1e-3)
    model = dataclasses.replace(
        config.model, generators={"image_out": dataclasses.replace(generator, denoiser=wider)}
    )
    with pytest.raises(ConfigError, match=r"model\.generators\.image_out\.denoiser"):
        assemble(dataclasses.replace(config, model=model), make_mesh(MeshConfig(), jax.devices()[:1]))
    model = dataclasses.replace(config.model, signal_tokens={"image_out": (258, 260)})
    with pytest.raises(ConfigError, match=r"signal_tokens\.image_out is \(258, 260\)"):
        make_processor(dataclasses.replace(config, model=model))
