"""Training stages as plain dicts with the settings that most published systems share.

Who is trained is said by patterns over whole paths, see `mmjax.train.stage`; these are the usual ones.
"""

from typing import Any

PROJECTORS = "projectors/.*"
ENCODERS = "encoders/.*"
LLM = "backbone/.*"
# What reads media inside the LLM.
FUSION = "backbone/fusion/.*"
LORA = "backbone/.*/lora_[ab]"


def stage(
    tiny: bool,
    *train: str | tuple,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: float = 0.03,
    mode: str = "chat",
    **options: Any,
) -> dict[str, Any]:
    """One stage; with `tiny`, 10 steps of 4 rows.

    Args:
        tiny: whether it is for a test.
        train: patterns of what is trained, or whole rules; everything else is frozen.
        steps, batch_size, learning_rate: as published.
        warmup: share of the steps.
        mode: "chat", or "plain": captions without a template.
        options: further fields of `StageConfig`.
    """
    every = 0 if tiny else 500
    return {
        "steps": 10 if tiny else steps,
        "batch_size": 4 if tiny else batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": 1 if tiny else round(warmup * steps),
        "trainable": tuple((rule, "train") if isinstance(rule, str) else rule for rule in train),
        "log_every": 5 if tiny else 10,
        "checkpoint_every": every,
        "panel_every": every,
        "data": {"path": None, "weights": (), "image_root": None, "mode": mode, "workers": 0, "skip_budget": 100},
        **options,
    }


def lora(rank: int, alpha: float, targets: tuple[str, ...] = ("q", "k", "v", "o")) -> dict[str, Any]:
    """Low-rank adapters of a stage; they need the pattern LORA among what is trained."""
    return {"rank": rank, "alpha": alpha, "targets": targets}
