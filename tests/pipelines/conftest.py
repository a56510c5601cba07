"""Tiny parts of Stable Diffusion with random weights, as torch modules, and directories of pipelines made of them."""

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers

from mmjax.interop.diffusers.scheduler import load_schedule

WORDS = ["a", "b", "c", "d", "e", "f", "o", "r", "t", "a</w>", "e</w>", "g</w>", "t</w>", "1</w>", ",</w>", "s"]
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d", "re d</w>"]
STARTS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCHEDULERS = {
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **STARTS),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **STARTS),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **STARTS),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**STARTS),
    "dpm_solver": lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **STARTS),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**STARTS),
}


class Torch:
    """diffusers' side: parts, and pipelines made of them."""

    def __init__(self, place):
        self.place, self.words = place, place / "words"
        pieces = [*WORDS, *("".join(merge.split()) for merge in MERGES), "<|startoftext|>", "<|endoftext|>"]
        pieces = [*dict.fromkeys([*pieces, "d</w>"])]
        self.words.mkdir()
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        (self.words / "vocab.json").write_text(json.dumps(vocabulary))
        (self.words / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
        options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9}
        (self.words / "tokenizer_config.json").write_text(json.dumps(options))
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(self.words, model_max_length=9)
        torch.manual_seed(0)
        self.ids = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
        self.vocabulary = len(pieces)
        self.text = transformers.CLIPTextModel(self.text_config(12, 3))
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=12, up_block_types=("UpDecoderBlock2D",) * 2,
            down_block_types=("DownEncoderBlock2D",) * 2,
        )  # fmt: skip
        # So that what is drawn from an encoded image is its mean, and both sides have the same latent.
        with torch.no_grad():
            self.vae.quant_conv.weight[4:] = 0
            self.vae.quant_conv.bias[4:] = -40

    def text_config(self, width, heads, **options):
        return transformers.CLIPTextConfig(
            vocab_size=self.vocabulary, hidden_size=width, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=heads, max_position_embeddings=9, pad_token_id=1, **self.ids, **options,
        )  # fmt: skip

    def unet(self, **options):
        torch.manual_seed(1)
        options = dict(cross_attention_dim=12, attention_head_dim=2) | options
        return diffusers.UNet2DConditionModel(
            sample_size=6, block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options,
        ).eval()  # fmt: skip

    def pipeline(self, kind, name, **parts):
        """A pipeline of class `kind`, and the directory `name` that it is saved in."""
        common = dict(vae=self.vae, text_encoder=self.text, tokenizer=self.tokenizer, scheduler=SCHEDULERS["pndm"]())
        if "XL" not in kind.__name__:
            common |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        made = kind(**common | parts)
        made.set_progress_bar_config(disable=True)
        made.save_pretrained(self.place / name)
        return made, self.place / name

    @staticmethod
    def normal(seed, *shape):
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    @staticmethod
    def uniform(seed, *shape):
        return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)

    @staticmethod
    def first(x):
        """[B, ..., C] as torch has it, channels first."""
        return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    def schedule(self, made, place, name):
        """Gives a pipeline another scheduler, in its directory too; ours for it."""
        made.scheduler = SCHEDULERS[name]()
        made.scheduler.save_pretrained(place / "scheduler")
        return load_schedule(place / "scheduler")


@pytest.fixture(scope="session")
def theirs(tmp_path_factory):
    return Torch(tmp_path_factory.mktemp("pipelines"))
