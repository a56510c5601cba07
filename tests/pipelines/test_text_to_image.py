"""Text to images against diffusers' StableDiffusionPipeline: the same latents, steps and prompts, the same image."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest

import mmjax
from mmjax.config import ConfigError
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.pipelines import load_pipeline
from mmjax.pipelines.text_to_image import draw

PROMPTS = ["a red cat, 1", "  A  DOG"]


@pytest.fixture(scope="module")
def made(theirs):
    return theirs.pipeline(diffusers.StableDiffusionPipeline, "text_to_image", unet=theirs.unet())


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("pndm")
@pytest.mark.parametrize("name", ["pndm", "ddim", "euler", "dpm_solver"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    noise = theirs.normal(0, 2, 8, 12, 4)
    runs = [(20, 7.5, None), (3, 2.0, ["a dog", "cat"])]
    if name != "pndm":
        # Without guidance; another program.
        runs += [(4, 1.0, "cat"), (5, 0.5, None)]
    for steps, scale, negative in runs:
        got = ours(PROMPTS, negative, steps, scale, height=16, width=24, latents=noise).images
        wanted = made(
            PROMPTS, negative_prompt=[negative] * 2 if isinstance(negative, str) else negative, height=16, width=24,
            num_inference_steps=steps, guidance_scale=scale, latents=theirs.first(noise),
            output_type="np",
        ).images  # fmt: skip
        assert got.shape == wanted.shape == (2, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale)
    assert ours.parts.compiled(draw)._cache_size() <= 2, "one program with guidance and one without"


def test_one_program_runs_any_number_of_steps_of_any_sampler(theirs, ours):
    noise = theirs.normal(0, 2, 8, 12, 4)
    options = dict(height=16, width=24, latents=noise)
    program = ours.parts.compiled(draw)
    first, before = ours(PROMPTS, num_inference_steps=1, **options).images, program._cache_size()
    for sampler in ("unipc", "heun", "ddpm"):
        schedule = ScheduleConfig(sampler, ours.schedule.noise, solver="bh2")
        other = dataclasses.replace(ours, schedule=schedule)
        for steps, scale in ((2, 3.0), (90, 1.5)):
            images = other(PROMPTS, "cat", steps, scale, **options).images
            assert np.isfinite(images).all() and np.abs(images - first).max() > 1e-3
    assert program._cache_size() == before


def test_ids_stand_for_prompts(theirs, ours):
    noise = theirs.normal(3, 2, 8, 12, 4)
    ids = theirs.tokenizer(PROMPTS, padding="max_length", max_length=9)["input_ids"]
    empty = theirs.tokenizer([""], padding="max_length", max_length=9)["input_ids"]
    options = dict(latents=noise, num_inference_steps=3, guidance_scale=4.0, height=16, width=24)
    wanted = ours(PROMPTS, **options).images
    assert (ours(prompt_ids=np.asarray(ids), negative_prompt_ids=empty, **options).images == wanted).all()
    without = dataclasses.replace(ours, parts=dataclasses.replace(ours.parts, tokenizer=None))
    with pytest.raises(ValueError, match="no tokenizer: give prompt_ids"):
        without(PROMPTS)
    with pytest.raises(ValueError, match="no tokenizer: give negative_prompt_ids"):
        without(prompt_ids=ids)


def test_bad_requests_and_directories_are_named(made, ours, tmp_path):
    _, place = made
    with pytest.raises(ValueError, match="11 x 12 pixels; sides must be multiples of 2"):
        ours("cat", height=11)
    with pytest.raises(ValueError, match=r"latents are \(1, 2, 2, 4\); wanted \(1, 6, 6, 4\)"):
        ours("cat", latents=np.zeros((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, got 0"):
        ours("cat", num_inference_steps=0)
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        ours(PROMPTS, ["dog"] * 3)
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        load_pipeline(tmp_path)
    index = json.loads((place / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        (tmp_path / name).symlink_to(place / name)
    checker = {**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    checker["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "model_index.json").write_text(json.dumps(checker))
    with pytest.raises(ConfigError, match=r"no feature_extractor, safety_checker; give skip=\('feature_ext"):
        load_pipeline(tmp_path)
    assert mmjax.from_pretrained(tmp_path, skip=("safety_checker",)).parts.unet == ours.parts.unet
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ConfigError, match="'FluxPipeline' is not supported"):
        load_pipeline(tmp_path)


@pytest.mark.slow
def test_the_seed_decides(ours):
    images = [ours("a cat", num_inference_steps=2, seed=seed).images for seed in (1, 1, 2)]
    assert (images[0] == images[1]).all() and np.abs(images[0] - images[2]).max() > 1e-3
    assert images[0].shape == (1, 12, 12, 3) and images[0].dtype == np.float32
