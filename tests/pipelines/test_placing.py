"""Pipelines on 8 devices beside one: the same images, weights where the rules say, rows that do not divide named."""

import diffusers
import jax
import numpy as np
import pytest
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.pipelines import load_pipeline

PROMPTS = ["a red cat, 1", "  A  DOG", "", "red", "a cat", "dog red dog", "a", "cat"]


@pytest.fixture(scope="module")
def directory(theirs):
    """A pipeline whose widths every mesh below divides."""
    text = transformers.CLIPTextModel(theirs.text_config(16, 4))
    # A vocabulary that two devices share.
    text.resize_token_embeddings(theirs.vocabulary + theirs.vocabulary % 2)
    return theirs.pipeline(
        diffusers.StableDiffusionPipeline, "spread", unet=theirs.unet(cross_attention_dim=16), text_encoder=text
    )[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_images_are_those_of_one_device(sizes, directory):
    one, mesh = load_pipeline(directory), make_mesh(MeshConfig(**sizes))
    many = mmjax.from_pretrained(directory, mesh=mesh)
    kernel = many.parts.params["text"]["blocks"]["mlp"]["up"]["kernel"]
    split = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size and len(kernel.sharding.device_set) == 8
    noise = np.random.default_rng(2).normal(size=(8, 8, 12, 4)).astype(np.float32)
    for scale in (7.5, 1.0):
        options = dict(num_inference_steps=5, guidance_scale=scale, height=16, width=24, latents=noise)
        images = [model(PROMPTS, **options).images for model in (one, many)]
        assert np.ptp(images[0]) > 0.05
        np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    with pytest.raises(ConfigError, match=f"batch rows must be a multiple of {sizes['data'] * sizes.get('fsdp', 1)}"):
        many(PROMPTS[:3], num_inference_steps=1, guidance_scale=1.0)


def test_widths_that_do_not_divide_are_named(directory):
    with pytest.raises(ConfigError, match=r"11 dimensions do not fit.*\n  blocks.* is 4, not a multiple of tensor=8"):
        load_pipeline(directory, mesh=make_mesh(MeshConfig(tensor=8), jax.devices()))
