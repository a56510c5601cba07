"""What a scheduler writes, read as a schedule that steps as it does."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.generators.sampling import first_latent, sample
from mmjax.generators.schedules import make_steps
from mmjax.interop.diffusers.scheduler import load_schedule, schedule_from_hf

PUBLISHED = {
    "stable diffusion": diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ),
    "ddim": diffusers.DDIMScheduler(clip_sample_range=0.8, timestep_spacing="trailing"),
    "lcm": diffusers.LCMScheduler(),
    "euler": diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"),
    "heun": diffusers.HeunDiscreteScheduler(),
    "dpm": diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0
    ),
    "dpm, few": diffusers.DPMSolverMultistepScheduler(solver_type="heun", final_sigmas_type="sigma_min"),
    "unipc": diffusers.UniPCMultistepScheduler(solver_order=3, timestep_spacing="leading", steps_offset=1),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_directory_of_theirs_steps_as_they_do(name, tmp_path):
    scheduler = PUBLISHED[name]
    scheduler.save_pretrained(tmp_path)
    steps = make_steps(load_schedule(tmp_path), 6, capacity=16)
    noise = np.random.default_rng(0).normal(size=(1, 2, 3)).astype(np.float32)
    scheduler.set_timesteps(6)
    torch.manual_seed(0)
    x = torch.tensor(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    if name == "lcm":
        np.testing.assert_allclose(steps.time[:6], scheduler.timesteps.numpy())
        return
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(torch.sin(seen), time, x).prev_sample
    got = sample(lambda x, time: jnp.sin(x), steps, first_latent(steps, noise), jax.random.key(0))
    assert np.abs(got - x.numpy()).max() <= 1e-4 * max(1.0, float(x.square().mean().sqrt()))


def test_what_is_not_supported_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scheduler_config.json"):
        load_schedule(tmp_path)
    for changes, message in (
        ({"_class_name": "DDIMSchedular"}, "DDIMSchedular.*DDIMScheduler"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps False"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding True is not supported"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type 'learned'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver'"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "belong together"),
    ):
        with pytest.raises(ConfigError, match=message):
            schedule_from_hf(changes)
