"""Text to images against diffusers' StableDiffusionPipeline: the same latents, steps and prompts, the same image."""

import json
import warnings

import diffusers
import numpy as np
import pytest
import torch
import transformers

import mmjax
import mmjax.latent_diffusion_model as latent_diffusion
from mmjax.config import ConfigError
from mmjax.latent_diffusion_model import load_latent_diffusion

WORDS = ["a", "b", "c", "d", "e", "f", "o", "r", "t", "a</w>", "e</w>", "g</w>", "t</w>", "1</w>", ",</w>", "s"]
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d"]
PROMPTS = ["a red cat, 1", "  A  DOG"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Their pipeline with random parts, and the directory that it was saved in."""
    place = tmp_path_factory.mktemp("pipeline")
    pieces = [*WORDS, *("".join(merge.split()) for merge in MERGES), "red</w>", "<|startoftext|>", "<|endoftext|>"]
    merges = [*MERGES, "re d</w>"]
    pieces = [*dict.fromkeys([*pieces, "d</w>"])]
    (place / "words").mkdir()
    (place / "words" / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (place / "words" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9}
    (place / "words" / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place / "words", model_max_length=9)
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=9, bos_token_id=len(pieces) - 2, eos_token_id=len(pieces) - 1, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=6, block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=12, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    made = diffusers.StableDiffusionPipeline(
        vae, transformers.CLIPTextModel(text), tokenizer, unet, scheduler("pndm"), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(place / "saved")
    return made, place / "saved", place / "words"


def scheduler(name):
    options = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return {
        "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **options),
        "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options),
        "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **options),
        "dpm_solver": lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **options),
    }[name]()


@pytest.mark.quick("pndm")
@pytest.mark.parametrize("name", ["pndm", "ddim", "euler", "dpm_solver"])
def test_images_equal_diffusers(name, pipeline, tmp_path, monkeypatch):
    made, place, _ = pipeline
    made.scheduler = scheduler(name)
    made.scheduler.save_pretrained(place / "scheduler")
    ours = load_latent_diffusion(place)
    noise = np.random.default_rng(0).normal(size=(2, 8, 12, 4)).astype(np.float32)
    for steps, scale, negative in ((20, 7.5, None), (3, 2.0, ["a dog", "cat"])):
        got = ours(PROMPTS, negative, steps, scale, height=16, width=24, latents=noise)
        wanted = made(
            PROMPTS, negative_prompt=negative, num_inference_steps=steps, guidance_scale=scale, height=16, width=24,
            latents=torch.tensor(noise.transpose(0, 3, 1, 2)), output_type="np",
        ).images  # fmt: skip
        assert got.shape == wanted.shape == (2, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3
    assert ours._draw._cache_size() == 1, "steps, scale and prompts are data"


def test_tokens_equal_theirs_and_what_is_cut_off_is_shown(pipeline):
    made, place, words = pipeline
    ours = load_latent_diffusion(place)
    bare = load_latent_diffusion(place)
    object.__setattr__(bare, "tokenizer", latent_diffusion.load_tokenizer(str(words)))
    prompts = [*PROMPTS, "", "cat's do.g é 12"]
    for model in (ours, bare):
        wanted = made.tokenizer(prompts, padding="max_length", truncation=True, max_length=9)["input_ids"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert (model.tokens(prompts) == np.where(np.asarray(wanted) < 0, 0, wanted)).all()
    with pytest.warns(UserWarning, match="read are 7; cut off is '.*dog"):
        ours.tokens("cat cat cat cat cat cat cat a dog")
    ids = np.array([[3, 4, 5]])
    assert ours.tokens(ids).shape == (1, 9)
    with pytest.raises(ValueError, match=r"token ids are \(1, 10\)"):
        ours.tokens(np.zeros((1, 10), int))


def test_bad_requests_and_directories_are_named(pipeline, tmp_path):
    _, place, _ = pipeline
    ours = load_latent_diffusion(place)
    with pytest.raises(ValueError, match="11 x 12 pixels; sides must be multiples of 2"):
        ours("cat", height=11)
    with pytest.raises(ValueError, match=r"latents are \(1, 2, 2, 4\); wanted \(1, 6, 6, 4\)"):
        ours("cat", latents=np.zeros((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, got 0"):
        ours("cat", num_inference_steps=0)
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts"):
        ours(PROMPTS, ["dog"])
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        load_latent_diffusion(tmp_path)
    index = json.loads((place / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        (tmp_path / name).symlink_to(place / name)
    checker = {**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (tmp_path / "model_index.json").write_text(json.dumps(checker))
    with pytest.raises(ConfigError, match=r"no safety_checker; give skip=\('safety_checker',\)"):
        load_latent_diffusion(tmp_path)
    assert mmjax.from_pretrained(tmp_path, skip=("safety_checker",)).unet == ours.unet
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ConfigError, match="'FluxPipeline' is not supported"):
        load_latent_diffusion(tmp_path)


def test_the_seed_decides(pipeline):
    _, place, _ = pipeline
    ours = load_latent_diffusion(place)
    first, again, other = (ours("a cat", num_inference_steps=2, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all() and np.abs(first - other).max() > 1e-3 and first.shape == (1, 12, 12, 3)
