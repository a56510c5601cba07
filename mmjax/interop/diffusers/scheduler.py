"""scheduler_config.json of a diffusers pipeline -> our schedule.

https://github.com/huggingface/diffusers/tree/main/src/diffusers/schedulers
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.config import ConfigError, nearest
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.schedules.config import ScheduleConfig

FILE = "scheduler_config.json"
PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}
# Class -> (sampler, the class's own defaults of options that its file does not say).
COMMON = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "leading"}
LEVELS = {**COMMON, "timestep_spacing": "linspace"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPMScheduler": ("ddpm", {**COMMON, "clip_sample": True}),
    "DDIMScheduler": ("ddim", {**COMMON, "clip_sample": True, "set_alpha_to_one": True}),
    "PNDMScheduler": ("pndm", {**COMMON, "set_alpha_to_one": False}),
    "LCMScheduler": (
        "lcm", {**COMMON, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "EulerDiscreteScheduler": ("euler", LEVELS),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", LEVELS),
    "HeunDiscreteScheduler": ("heun", {**LEVELS, "beta_start": 0.00085, "beta_end": 0.012}),
    "DPMSolverMultistepScheduler": ("dpm_solver", LEVELS),
    "UniPCMultistepScheduler": ("unipc", LEVELS),
    "FlowMatchEulerDiscreteScheduler": ("flow_euler", COMMON),
}  # fmt: skip
# Options that are supported at these values alone.
FIXED: dict[str, Any] = {
    "trained_betas": None, "thresholding": False, "use_beta_sigmas": False, "use_lu_lambdas": False,
    "use_dynamic_shifting": False, "stochastic_sampling": False, "invert_sigmas": False, "shift_terminal": None,
    "interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "sigma_max": None,
    "lambda_min_clipped": -float("inf"), "euler_at_final": False, "predict_x0": True, "solver_p": None,
}  # fmt: skip


def schedule_from_hf(hf: Mapping[str, Any]) -> ScheduleConfig:
    """The content of scheduler_config.json -> ScheduleConfig.

    Raises:
        ConfigError: a class or an option that is not supported.
    """
    name = hf.get("_class_name")
    if name not in SCHEDULERS:
        raise ConfigError(
            f"_class_name {name!r} is no scheduler that is supported.{nearest(str(name), SCHEDULERS)} "
            f"Supported are {', '.join(SCHEDULERS)}"
        )
    sampler, defaults = SCHEDULERS[name]
    for option, value in FIXED.items():
        if hf.get(option, value) not in (value, None) or (hf.get(option, value) is None and value):
            raise ConfigError(f"{name}: {option} {hf[option]!r} is not supported, only {value!r}")
    if hf.get("disable_corrector"):
        raise ConfigError(f"{name}: disable_corrector {hf['disable_corrector']!r} is not supported")
    if sampler == "pndm" and not hf.get("skip_prk_steps", False):
        raise ConfigError(f"{name}: skip_prk_steps False is not supported: its first steps are Runge-Kutta's")

    def option(key: str, other: Any = None) -> Any:
        value = hf.get(key)
        return defaults.get(key, other) if value is None else value

    flow = sampler == "flow_euler"
    if option("use_flow_sigmas", False) != (option("prediction_type") == "flow_prediction"):
        raise ConfigError(f"{name}: use_flow_sigmas and prediction_type flow_prediction belong together")
    prediction = "flow" if flow else PREDICTIONS.get(option("prediction_type", "epsilon"))
    if prediction is None:
        raise ConfigError(f"{name}: prediction_type {hf['prediction_type']!r} is not supported")
    noise = NoiseConfig(
        train_steps=option("num_train_timesteps", 1000),
        betas=option("beta_schedule"),
        beta_start=option("beta_start"),
        beta_end=option("beta_end"),
        zero_snr=option("rescale_betas_zero_snr", False),
        prediction=prediction,
    )
    sigmas = "train"
    for kind in ("karras", "exponential"):
        sigmas = kind if option(f"use_{kind}_sigmas", False) else sigmas
    if flow and sigmas != "train":
        raise ConfigError(f"{name}: {sigmas} sigmas are not supported")
    return ScheduleConfig(
        noise=noise,
        spacing=option("timestep_spacing"),
        offset=option("steps_offset", 0),
        sigmas=sigmas,
        clip=option("clip_sample_range", 1.0) if option("clip_sample", False) else None,
        **_further(name, sampler, option),
    )


def _further(name: str, sampler: str, option: Any) -> dict[str, Any]:
    """What the samplers have for themselves, and their name."""
    out: dict[str, Any] = {"sampler": sampler}
    if sampler in ("ddim", "pndm"):
        out["final_is_clean"] = option("set_alpha_to_one")
    if sampler == "ddpm":
        variance = option("variance_type", "fixed_small")
        if variance not in ("fixed_small", "fixed_large"):
            raise ConfigError(f"{name}: variance_type {variance!r} is not supported")
        out["large_variance"] = variance == "fixed_large"
    if sampler == "lcm":
        out["original_steps"] = option("original_inference_steps", 50)
        out["time_scaling"] = option("timestep_scaling", 10.0)
    if sampler in ("euler", "dpm_solver", "unipc"):
        out["final_sigma_zero"] = option("final_sigmas_type", "zero") == "zero"
    if sampler in ("dpm_solver", "unipc"):
        out |= {"order": option("solver_order", 2), "lower_order_final": option("lower_order_final", True)}
        out |= {"solver": option("solver_type", "midpoint" if sampler == "dpm_solver" else "bh2")}
        out["shift"] = option("flow_shift", 1.0) if option("use_flow_sigmas", False) else 1.0
    if sampler == "dpm_solver":
        kinds = {"dpmsolver++": "dpm_solver", "sde-dpmsolver++": "sde_dpm_solver"}
        algorithm = option("algorithm_type", "dpmsolver++")
        if algorithm not in kinds:
            raise ConfigError(f"{name}: algorithm_type {algorithm!r} is not supported, only {', '.join(kinds)}")
        out["sampler"] = kinds[algorithm]
    if sampler == "flow_euler":
        out["shift"] = option("shift", 1.0)
    return out


def load_schedule(directory: str | os.PathLike) -> ScheduleConfig:
    """The schedule of a directory with scheduler_config.json.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: see `schedule_from_hf`.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {FILE}")
    return schedule_from_hf(json.loads(path.read_text(encoding="utf-8")))
