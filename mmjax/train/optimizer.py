"""AdamW over a flat mapping of trained leaves: schedule, clipping, rates by path, decay where it belongs.

Loshchilov and Hutter, 2019 (AdamW). One update is p <- p - lr * m * (adam(g) + weight_decay * p), as
torch.optim.AdamW with one parameter group for each multiplier m.
"""

from collections.abc import Mapping
from typing import Any

import optax

from mmjax.train.stage import StageConfig


def schedule(stage: StageConfig) -> optax.Schedule:
    """step -> learning rate of the update that takes `step` to `step + 1`.

    With W warm-up steps the rate is peak * step / W first, then decays over the remaining steps; the update
    after the last one would have `final_fraction` of the peak.
    """
    peak, end = stage.learning_rate, stage.learning_rate * stage.final_fraction
    rest = max(stage.steps - stage.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, stage.final_fraction),
    }[stage.schedule]()
    if not stage.warmup_steps:
        return after
    rise = optax.linear_schedule(0.0, peak, stage.warmup_steps)
    return optax.join_schedules([rise, after], [stage.warmup_steps])


def decays(path: str, axes: tuple[str | None, ...]) -> bool:
    """Whether weight decay applies: matrices and tables do, norms' scales, biases and single vectors do not.

    The axis "layers" of stacked blocks is not counted.
    """
    name = path.rsplit("/", 1)[-1]
    return name not in ("scale", "bias") and sum(axis != "layers" for axis in axes) >= 2


def make_optimizer(
    stage: StageConfig, multiplier: Mapping[str, float], axes: Mapping[str, tuple[str | None, ...]]
) -> optax.GradientTransformation:
    """The stage's optimiser for a flat mapping path -> trained leaf.

    Args:
        stage: rates, decay, clipping.
        multiplier: path -> learning-rate multiplier of every trained path, from `multipliers`.
        axes: path -> logical axis names, from the model's `param_axes` made flat; may hold more paths.
    """
    decay = {path: stage.weight_decay if decays(path, axes[path]) else 0.0 for path in multiplier}

    def decay_and_scale(updates: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {
            path: multiplier[path] * (update + decay[path] * params[path]) for path, update in updates.items()
        }

    clip = [] if stage.clip_norm is None else [optax.clip_by_global_norm(stage.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(b1=stage.b1, b2=stage.b2, eps=stage.eps),
        optax.stateless(decay_and_scale),
        optax.scale_by_learning_rate(schedule(stage)),
    )
