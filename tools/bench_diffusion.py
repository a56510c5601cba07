"""Speed on a CPU beside diffusers: one call of a UNet, and Stable Diffusion from token ids to images.

    JAX_PLATFORMS=cpu python tools/bench_diffusion.py                 # a UNet of about 1M parameters, 20 steps
    JAX_PLATFORMS=cpu python tools/bench_diffusion.py --width 128     # a larger one

Both libraries have the same random weights in float32, the same latents, steps and threads, and take turns within one
run; what is printed is the ratio of their times in each turn (median, lowest and highest), since a shared machine's
absolute times say little. Above 1 means that mmjax is faster. At the end stands how many programs were compiled for
runs of several numbers of steps and several samplers: one.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import mmjax  # noqa: E402
from mmjax.generators.schedules.config import ScheduleConfig  # noqa: E402
from mmjax.pipelines import text_to_image  # noqa: E402

WINDOW, VOCABULARY = 77, 99


def random_pipeline(width: int, side: int) -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion with random weights, whose latents have `side` places a side."""
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=WINDOW,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(width, 2 * width), layers_per_block=1, sample_size=side, cross_attention_dim=width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    schedule = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )
    made = diffusers.StableDiffusionPipeline(
        autoencoder, transformers.CLIPTextModel(text), None, unet, schedule, None, None, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def turns(ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], count: int) -> list[tuple[float, float]]:
    """Seconds of both, one after the other, `count` times after one round that does not count; results must agree."""
    difference = np.abs(ours() - theirs()).max()
    if difference > 1e-3:
        raise SystemExit(f"the two differ by {difference:.2g}")
    taken = []
    for _ in range(count):
        pair = []
        for run in (ours, theirs):
            began = time.perf_counter()
            run()
            pair.append(time.perf_counter() - began)
        taken.append((pair[0], pair[1]))
    return taken


def report(name: str, taken: list[tuple[float, float]]) -> None:
    """Prints the ratio theirs / ours."""
    ratios = sorted(theirs / ours for ours, theirs in taken)
    ours, theirs = (1000 * statistics.median(pair[i] for pair in taken) for i in range(2))
    print(
        f"{name:<10} {statistics.median(ratios):5.2f}x  (from {ratios[0]:.2f} to {ratios[-1]:.2f})   "
        f"mmjax {ours:.1f} ms, diffusers {theirs:.1f} ms",
        flush=True,
    )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=32, help="channels of the UNet's first level")
    parser.add_argument("--side", type=int, default=16, help="places of a latent's side")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=THREADS, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs = random_pipeline(options.width, options.side)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = mmjax.from_pretrained(folder)
        unet = mmjax.from_pretrained(Path(folder) / "unet")
    rng = np.random.default_rng(0)
    shape = (options.batch, options.side, options.side, 4)
    noise = rng.normal(size=shape).astype(np.float32)
    text = rng.normal(size=(options.batch, WINDOW, options.width)).astype(np.float32)
    ids, empty = rng.integers(3, VOCABULARY, (2, options.batch, WINDOW))
    noise_first, text_tensor = torch.tensor(noise.transpose(0, 3, 1, 2)).contiguous(), torch.tensor(text)

    @torch.inference_mode()
    def their_unet() -> np.ndarray:
        return theirs.unet(noise_first, 500, encoder_hidden_states=text_tensor).sample.numpy().transpose(0, 2, 3, 1)

    @torch.inference_mode()
    def their_images() -> np.ndarray:
        states = [theirs.text_encoder(torch.tensor(one)).last_hidden_state for one in (ids, empty)]
        return theirs(
            prompt_embeds=states[0], negative_prompt_embeds=states[1], num_inference_steps=options.steps,
            latents=noise_first, output_type="np",
        ).images  # fmt: skip

    def our_images(model: text_to_image.LatentDiffusion = ours, steps: int = options.steps) -> np.ndarray:
        given = dict(prompt_ids=ids, negative_prompt_ids=empty, latents=noise)
        return model(num_inference_steps=steps, **given).images

    count = sum(parameter.numel() for parameter in theirs.unet.parameters())
    sizes = f"UNet of {count / 1e6:.1f}M parameters, latents {shape}"
    print(f"{sizes}, {options.steps} steps, {options.threads} threads each", flush=True)
    report("UNet", turns(lambda: np.asarray(unet(noise, 500, text).sample), their_unet, options.turns))
    report("pipeline", turns(our_images, their_images, options.turns))
    for steps in (1, 7, 50):
        for sampler in ("ddim", "euler", "heun"):
            other = dataclasses.replace(ours, schedule=ScheduleConfig(sampler, ours.schedule.noise))
            our_images(other, steps)
    compiled = ours.parts.compiled(text_to_image.draw)._cache_size()
    print(f"programs compiled for 1, 7, {options.steps} and 50 steps of 3 samplers: {compiled}")


if __name__ == "__main__":
    main()
