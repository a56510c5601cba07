"""Every sampler's table, run, against diffusers' schedulers stepped by hand."""

import importlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.sampling import first_latent, sample
from mmjax.generators.schedules import levels_at, make_steps
from mmjax.generators.schedules.config import ScheduleConfig

SHAPE = (2, 3, 4, 5)
SD = dict(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
THEIRS_SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(betas="squaredcos_cap_v2", train_steps=200)
THEIRS_COSINE = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200)
V, THEIRS_V = dict(prediction="v"), dict(prediction_type="v_prediction")
DPM = diffusers.DPMSolverMultistepScheduler
FLOW = dict(prediction="flow")
# Name -> (their class, their options, our noise, our options).
CASES = {
    "ddpm": (diffusers.DDPMScheduler, dict(clip_sample=True), {}, dict(clip=1.0)),
    "ddpm, large": (
        diffusers.DDPMScheduler,
        dict(clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing", **THEIRS_SD, **THEIRS_V),
        {**SD, **V},
        dict(large_variance=True, spacing="trailing"),
    ),
    "ddim": (diffusers.DDIMScheduler, dict(clip_sample=False, **THEIRS_SD), SD, {}),
    "ddim, clipped": (
        diffusers.DDIMScheduler,
        dict(clip_sample=True, clip_sample_range=0.7, set_alpha_to_one=False, steps_offset=1, **THEIRS_COSINE),
        COSINE,
        dict(clip=0.7, final_is_clean=False, offset=1),
    ),
    "ddim, sample": (
        diffusers.DDIMScheduler,
        dict(clip_sample=False, prediction_type="sample", timestep_spacing="linspace"),
        dict(prediction="sample"),
        dict(spacing="linspace"),
    ),
    "ddim, nothing left": (
        diffusers.DDIMScheduler,
        dict(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing", **THEIRS_SD, **THEIRS_V),
        {**SD, **V, "zero_snr": True},
        dict(spacing="trailing"),
    ),
    "pndm": (
        diffusers.PNDMScheduler,
        dict(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **THEIRS_SD),
        SD,
        dict(offset=1, final_is_clean=False),
    ),
    "pndm, v": (
        diffusers.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=True, **THEIRS_V), V, {},
    ),
    "lcm": (diffusers.LCMScheduler, dict(clip_sample=False, **THEIRS_SD), SD, {}),
    "lcm, v": (
        diffusers.LCMScheduler,
        dict(clip_sample=True, original_inference_steps=40, timestep_scaling=3.0, **THEIRS_COSINE, **THEIRS_V),
        {**COSINE, **V},
        dict(clip=1.0, original_steps=40, time_scaling=3.0),
    ),
    "euler": (diffusers.EulerDiscreteScheduler, THEIRS_SD, SD, dict(spacing="linspace")),
    "euler, karras": (
        diffusers.EulerDiscreteScheduler,
        dict(use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1, **THEIRS_SD, **THEIRS_V),
        {**SD, **V},
        dict(sigmas="karras", offset=1),
    ),
    "euler, exponential": (
        diffusers.EulerDiscreteScheduler,
        dict(use_exponential_sigmas=True, final_sigmas_type="sigma_min", prediction_type="sample"),
        dict(prediction="sample"),
        dict(sigmas="exponential", spacing="linspace", final_sigma_zero=False),
    ),
    "euler_ancestral": (
        diffusers.EulerAncestralDiscreteScheduler,
        dict(timestep_spacing="trailing", **THEIRS_SD, **THEIRS_V), {**SD, **V}, dict(spacing="trailing"),
    ),
    "heun": (diffusers.HeunDiscreteScheduler, THEIRS_SD, SD, dict(spacing="linspace")),
    "heun, karras": (
        diffusers.HeunDiscreteScheduler,
        dict(use_karras_sigmas=True, **THEIRS_SD, **THEIRS_V), {**SD, **V},
        dict(sigmas="karras", spacing="linspace"),
    ),
    "dpm_solver": (DPM, THEIRS_SD, SD, dict(spacing="linspace")),
    "dpm_solver, third order": (
        DPM, dict(solver_order=3, lower_order_final=False, **THEIRS_V), V,
        dict(order=3, lower_order_final=False, spacing="linspace"),
    ),
    "dpm_solver, heun": (
        DPM, dict(solver_type="heun", final_sigmas_type="sigma_min", **THEIRS_SD), SD,
        dict(solver="heun", final_sigma_zero=False, spacing="linspace"),
    ),
    "dpm_solver, first order": (
        DPM, dict(solver_order=1, timestep_spacing="leading", steps_offset=1, prediction_type="sample"),
        dict(prediction="sample"), dict(order=1, offset=1),
    ),
    "dpm_solver, flow": (
        DPM, dict(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"), FLOW, dict(shift=3.0),
    ),
    "sde_dpm_solver": (
        DPM, dict(algorithm_type="sde-dpmsolver++", timestep_spacing="trailing", **THEIRS_SD), SD,
        dict(spacing="trailing"),
    ),
    "dpm_solver, karras": (
        DPM, dict(use_karras_sigmas=True, solver_order=3, **THEIRS_SD, **THEIRS_V), {**SD, **V},
        dict(sigmas="karras", order=3, spacing="linspace"),
    ),
    "sde_dpm_solver, heun": (
        DPM, dict(algorithm_type="sde-dpmsolver++", solver_type="heun", **THEIRS_SD), SD,
        dict(solver="heun", spacing="linspace"),
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, THEIRS_SD, SD, dict(solver="bh2", spacing="linspace")),
    "unipc, third order": (
        diffusers.UniPCMultistepScheduler,
        # With a last level of zero their B(h) is infinite, and their latents no numbers.
        dict(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min", **THEIRS_V), V,
        dict(order=3, solver="bh1", final_sigma_zero=False, spacing="linspace"),
    ),
    "unipc, karras": (
        diffusers.UniPCMultistepScheduler, dict(solver_order=3, use_karras_sigmas=True, prediction_type="sample"),
        dict(prediction="sample"), dict(order=3, solver="bh2", sigmas="karras", spacing="linspace"),
    ),
    "unipc, flow": (
        diffusers.UniPCMultistepScheduler,
        dict(use_flow_sigmas=True, flow_shift=2.5, prediction_type="flow_prediction"), FLOW,
        dict(solver="bh2", shift=2.5),
    ),
    "flow_euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}, FLOW, {}),
    "flow_euler, shifted": (diffusers.FlowMatchEulerDiscreteScheduler, dict(shift=3.0), FLOW, dict(shift=3.0)),
}  # fmt: skip
WEIGHT, BIAS = (np.random.default_rng(1).normal(size=SHAPE).astype(np.float32) for _ in range(2))
RNG = jax.random.key(5)
PROGRAM = jax.jit(lambda steps, noise, rng: sample(ours, steps, first_latent(steps, noise), rng))


def ours(x, time):
    return jnp.tanh(0.4 * x + WEIGHT * jnp.sin(time / 97)) + 0.3 * BIAS


def theirs(x, time):
    return torch.tanh(0.4 * x + torch.tensor(WEIGHT) * torch.sin(time.float() / 97)) + 0.3 * torch.tensor(BIAS)


def config_of(name):
    _, _, noise, options = CASES[name]
    return ScheduleConfig(name.split(",")[0], NoiseConfig(**noise), **options)


def run_theirs(name, steps, noise, monkeypatch):
    kind, options, _, _ = CASES[name]
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    place = {}

    def draw(shape, **_):
        return torch.tensor(np.array(jax.random.normal(jax.random.fold_in(RNG, place["row"]), shape)))

    module = importlib.import_module(kind.__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", draw)
    x = torch.tensor(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    for place["row"], time in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(theirs(seen, time), time, x).prev_sample
    return scheduler, x.numpy()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 33])
@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_diffusers(name, steps, monkeypatch):
    config = config_of(name)
    assert from_dict(ScheduleConfig, to_dict(config)) == config
    noise = np.random.default_rng(steps).normal(size=SHAPE).astype(np.float32)
    scheduler, wanted = run_theirs(name, steps, noise, monkeypatch)
    table = make_steps(config, steps, capacity=80)
    np.testing.assert_allclose(table.time[: table.count], scheduler.timesteps.numpy(), rtol=1e-5, atol=2e-3)
    got = np.asarray(PROGRAM(table, noise, RNG))
    assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))


def test_one_program_runs_every_sampler_and_any_number_of_steps():
    noise, before = np.ones(SHAPE, np.float32), PROGRAM._cache_size()
    for name in ("ddpm", "pndm", "heun", "unipc, third order", "flow_euler"):
        for steps in (1, 4, 25):
            assert np.isfinite(PROGRAM(make_steps(config_of(name), steps, capacity=80), noise, RNG)).all()
    assert PROGRAM._cache_size() == max(before, 1)


@pytest.mark.parametrize("start", [0, 3, 9])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm_solver", "unipc, third order", "flow_euler"])
def test_image_to_image_begins_at_the_level_of_its_first_step(name, start):
    config = config_of(name)
    alpha, sigma = levels_at(config, 10, start)
    whole = {"euler": alpha, "flow_euler": alpha + sigma}.get(name, alpha**2 + sigma**2)
    assert whole == pytest.approx(1.0)
    later = levels_at(config, 10, start + 1)[1] if start < 9 else 0.0
    assert sigma > later
    table = make_steps(config, 10, start)
    assert table.count == 10 - start and table.time[0] == make_steps(config, 10).time[start]


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, got 0"):
        make_steps(ScheduleConfig(), 0)
    with pytest.raises(ValueError, match="start must be from 0 to 4, got 5"):
        make_steps(ScheduleConfig(), 5, 5)
    with pytest.raises(ValueError, match="20 evaluations of the denoiser do not fit a program for 8"):
        make_steps(ScheduleConfig(), 20, capacity=8)
    with pytest.raises(ValueError, match="60 steps, but schedule.original_steps is 50"):
        make_steps(ScheduleConfig("lcm"), 60)
    with pytest.raises(ConfigError, match="sde_dpm_solver.* 1 or 2"):
        ScheduleConfig("sde_dpm_solver", order=3)
    with pytest.raises(ConfigError, match="cannot follow straight lines"):
        ScheduleConfig("ddim", NoiseConfig(prediction="flow"))
    with pytest.raises(ConfigError, match='needs noise.prediction "flow"'):
        ScheduleConfig("flow_euler")
    with pytest.raises(ConfigError, match="epsilon.* says nothing of x_0"):
        make_steps(ScheduleConfig("ddim", NoiseConfig(zero_snr=True), spacing="trailing"), 5)
