"""Which sampler, and its options."""

import dataclasses
from typing import ClassVar

from mmjax.config import ConfigError, check_choice
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.schedules.times import SIGMAS, SPACINGS

SAMPLERS = (
    "ddpm", "ddim", "pndm", "lcm", "euler", "euler_ancestral", "heun", "dpm_solver", "sde_dpm_solver", "unipc",
    "flow_euler",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A sampler.

    Attributes:
        sampler: "ddpm" (Ho et al., 2020), "ddim" (Song et al., 2021), "pndm" (Liu et al., 2022, without its warm-up by
            Runge-Kutta), "lcm" (Luo et al., 2023), "euler", "euler_ancestral", "heun" (Karras et al., 2022),
            "dpm_solver" and "sde_dpm_solver" (DPM-Solver++; Lu et al., 2022), "unipc" (Zhao et al., 2023), or
            "flow_euler" along straight lines.
        noise: that of training.
        spacing, offset: of the times, see `times`.
        sigmas: how noise levels are spread: as in training at those times, or see `spread`.
        clip: predictions of x_0 are clipped to -clip ... clip; None leaves them.
        eta: of "ddim", 0 is deterministic and 1 as noisy as "ddpm".
        final_is_clean: whether "ddim", "pndm" and "lcm" end without noise rather than at the first time's.
        large_variance: whether "ddpm" adds the forward variance rather than the posterior's.
        order: of "dpm_solver" and "unipc", 1 to 3; of "sde_dpm_solver" 1 or 2.
        solver: how "dpm_solver" takes its second order, "midpoint" or "heun"; for "unipc" B(h), "bh1" or "bh2".
        lower_order_final: whether the last steps have lower orders (where there are few, for "dpm_solver").
        final_sigma_zero: whether noise levels end at 0 rather than at the first time's.
        shift: of "flow_euler" and of others along straight lines: how far times go towards noise.
        original_steps, time_scaling: of "lcm": steps it was distilled with, and of its boundary condition.
    """

    sampler: str = "ddim"
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    spacing: str = "leading"
    offset: int = 0
    sigmas: str = "train"
    clip: float | None = None
    eta: float = 0.0
    final_is_clean: bool = True
    large_variance: bool = False
    order: int = 2
    solver: str = "midpoint"
    lower_order_final: bool = True
    final_sigma_zero: bool = True
    shift: float = 1.0
    original_steps: int = 50
    time_scaling: float = 10.0

    kind: ClassVar[str] = "schedule"

    def __post_init__(self):
        check_choice("schedule.sampler", self.sampler, SAMPLERS)
        check_choice("schedule.spacing", self.spacing, SPACINGS)
        check_choice("schedule.sigmas", self.sigmas, SIGMAS)
        if self.sampler in ("dpm_solver", "sde_dpm_solver"):
            check_choice("schedule.solver", self.solver, ("midpoint", "heun"))
        if self.sampler == "unipc":
            check_choice("schedule.solver", self.solver, ("bh1", "bh2"))
        if not 1 <= self.order <= 3:
            raise ConfigError(f"schedule.order must be 1, 2 or 3, got {self.order}")
        if self.sampler == "sde_dpm_solver" and self.order == 3:
            raise ConfigError("schedule.order: sde_dpm_solver has order 1 or 2")
        straight = ("flow_euler", "dpm_solver", "sde_dpm_solver", "unipc")
        if self.noise.flow and self.sampler not in straight:
            raise ConfigError(f"schedule.sampler {self.sampler!r} cannot follow straight lines; {straight} can")
        if self.sampler == "flow_euler" and not self.noise.flow:
            raise ConfigError('schedule.sampler "flow_euler" needs noise.prediction "flow"')
        if self.clip is not None and self.sampler not in ("ddpm", "ddim", "lcm"):
            raise ConfigError(f"schedule.clip is for ddpm, ddim and lcm, not {self.sampler!r}")
