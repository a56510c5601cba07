"""A training stage: what is trained, for how long, and the proof that the rest did not move.

A parameter is named by its path (`backbone/blocks/attn/q/kernel`). A stage lists `(regex, "train" |
"freeze", learning-rate multiplier)`; a regex must match the WHOLE path, the first that does decides, and a
path that none matches is frozen. Params are split into two flat mappings before the gradient is taken, so
frozen leaves have neither gradient nor optimiser state.
"""

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmjax.config import ConfigError, check_choice, from_dict, nearest, to_dict
from mmjax.nn.lora import LoRAConfig, add_lora
from mmjax.paths import flatten

SCHEDULES = ("cosine", "constant", "linear")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        name: also the name of its folder in the workdir.
        steps: optimiser steps.
        batch_size: rows of text of one optimiser step, over all devices and micro-batches.
        accumulate: micro-batches that one step is cut into; must divide `batch_size`.
        learning_rate: peak; the schedule multiplies it, and each rule's multiplier.
        schedule: after the warm-up "cosine" or "linear" decay to `final_fraction`, or "constant".
        warmup_steps: steps of linear rise from 0 to the peak.
        final_fraction: of the peak, reached at the end.
        weight_decay, b1, b2, eps: of AdamW.
        clip_norm: largest global norm of the gradient, or None.
        trainable: rules (regex over the whole path, "train" or "freeze", learning-rate multiplier); a rule of
            two items has multiplier 1.
        lora: low-rank adapters added to the backbone for this stage and merged into it at the end; their
            paths end in `lora_a` and `lora_b` and need a rule that trains them.
        seed: of everything random in the stage.
        data: the data spec, passed through to whoever builds the pipeline.
        log_every, checkpoint_every, eval_every, panel_every: in steps; 0 is never (a checkpoint is always
            written at the last step).
        keep: how many checkpoints stay on disk.
        skip_nonfinite: whether a step with a non-finite loss or gradient is left out and counted; else it
            is an error.
        router_weight: of a model with experts, what the balancing loss of its routers is multiplied by before it is
            added to the loss, see `mmjax.nn.moe`; 0 only watches them, None does not.
        fusion: options of what reads media inside the backbone that hold in this stage alone, such as
            {"routing": "modality"}; none that parameters hang on.
        loss_weights: of the losses of a model with generators, see `mmjax.train.signal_loss.SignalLoss`; those that
            are not here have their own.
    """

    name: str
    steps: int
    batch_size: int
    trainable: tuple[tuple[str, str, float] | tuple[str, str], ...]
    learning_rate: float = 1e-4
    accumulate: int = 1
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    lora: LoRAConfig | None = None
    seed: int = 0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    log_every: int = 10
    checkpoint_every: int = 0
    eval_every: int = 0
    panel_every: int = 0
    keep: int = 2
    skip_nonfinite: bool = True
    router_weight: float | None = None
    fusion: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        where = f"stage {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(f"{where}: the name is also a folder; use letters, digits, '_', '-' and '.'")
        check_choice(f"{where}.schedule", self.schedule, SCHEDULES)
        for key in ("steps", "batch_size", "accumulate", "keep"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{where}.{key} must be at least 1, got {getattr(self, key)}")
        for key in (
            "warmup_steps",
            "log_every",
            "checkpoint_every",
            "eval_every",
            "panel_every",
            "weight_decay",
        ):
            if getattr(self, key) < 0:
                raise ConfigError(f"{where}.{key} must not be negative, got {getattr(self, key)}")
        for key in ("learning_rate", "eps"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{where}.{key} must be positive and finite, got {getattr(self, key)}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"{where}.clip_norm must be positive, or null for none; got {self.clip_norm}")
        if self.router_weight is not None and not 0 <= self.router_weight < math.inf:
            raise ConfigError(f"{where}.router_weight must not be negative, or null; got {self.router_weight}")
        if self.warmup_steps > self.steps:
            raise ConfigError(f"{where}.warmup_steps {self.warmup_steps} is more than its {self.steps} steps")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"{where}.accumulate {self.accumulate} does not divide batch_size {self.batch_size}"
            )
        object.__setattr__(self, "trainable", tuple(_rule(rule, where) for rule in self.trainable))


def _rule(rule: Any, where: str) -> tuple[str, str, float]:
    pattern, action, multiplier = (*rule, 1.0) if len(rule) == 2 else rule
    check_choice(f"{where}.trainable {pattern!r}", action, ("train", "freeze"))
    if not 0 < multiplier < math.inf:
        raise ConfigError(f"{where}.trainable {pattern!r}: multiplier must be positive, got {multiplier}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}.trainable {pattern!r} is no regular expression: {error}") from error
    return pattern, action, float(multiplier)


def multipliers(params: Any, stage: StageConfig) -> dict[str, float]:
    """path -> learning-rate multiplier of the trained leaves, in sorted order.

    Raises:
        ConfigError: a rule matches no path (the message names near ones), or only paths that an earlier rule
            has taken; or nothing is trained.
    """
    paths = list(flatten(params))
    decided: dict[str, float | None] = {}
    for pattern, action, multiplier in stage.trainable:
        matches = [path for path in paths if re.fullmatch(pattern, path)]
        if not matches:
            raise ConfigError(
                f"stage {stage.name!r}: no path matches {pattern!r} as a whole.{_near(pattern, paths)}"
            )
        new = [path for path in matches if path not in decided]
        if not new:
            raise ConfigError(
                f"stage {stage.name!r}: earlier rules have taken all {len(matches)} paths that {pattern!r} "
                f"matches; the first match decides, so put it before them"
            )
        decided.update(dict.fromkeys(new, multiplier if action == "train" else None))
    trained = {path: decided[path] for path in paths if decided.get(path) is not None}
    if not trained:
        raise ConfigError(f'stage {stage.name!r} trains nothing: no rule of its `trainable` says "train"')
    return trained


def _near(pattern: str, paths: list[str]) -> str:
    inside = [path for path in paths if re.search(pattern, path)]
    if inside:
        return f' It matches a part of {len(inside)}, such as {inside[0]!r}: write ".*" for the rest.'
    plain = re.sub(r"[\\^$*+?.()|\[\]{}]", "", pattern)
    close = difflib.get_close_matches(plain, paths, n=3, cutoff=0.3)
    groups = sorted({group_of(path) for path in paths})
    near = f" Near it: {', '.join(close)}." if close else nearest(plain, groups)
    return f"{near} The params have: {', '.join(groups)}"


def split(params: Any, stage: StageConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen), each flat path -> leaf.

    Raises:
        ConfigError: as `multipliers`, or the blocks are unstacked (a tuple of layers).
    """
    flat = flatten(params)
    for path, leaf in flat.items():
        if isinstance(leaf, (tuple, list)):
            raise ConfigError(
                f"{path} is a {type(leaf).__name__} of {len(leaf)} layers; training takes stacked params"
            )
    trained = multipliers(params, stage)
    return {path: flat[path] for path in trained}, {
        path: leaf for path, leaf in flat.items() if path not in trained
    }


def adapt(model: Any, params: Any, stage: StageConfig) -> tuple[Any, Any]:
    """(model, params) with the stage's own options of fusion and its low-rank adapters, or as they are without.

    Raises:
        ConfigError: the model has adapters already, or no such option.
    """
    if stage.fusion:
        backbone = model.config.backbone
        fusion = getattr(backbone, "fusion", None)
        if fusion is None:
            raise ConfigError(f"stage {stage.name!r}.fusion: the backbone has no fusion")
        changed = from_dict(type(fusion), {**to_dict(fusion), **stage.fusion}, f"stage {stage.name!r}.fusion")
        config = dataclasses.replace(model.config, backbone=dataclasses.replace(backbone, fusion=changed))
        other = dataclasses.replace(model, config=config)
        if flatten(other.param_shapes()) != flatten(model.param_shapes()):
            raise ConfigError(f"stage {stage.name!r}.fusion {stage.fusion}: parameters hang on it")
        model = other
    if stage.lora is None:
        return model, params
    config = model.config
    if config.backbone.lora is not None:
        raise ConfigError(
            f"stage {stage.name!r} adds LoRA, but the model has it already; merge it first"
        )
    backbone = dataclasses.replace(config.backbone, lora=stage.lora)
    adapted = dataclasses.replace(model, config=dataclasses.replace(config, backbone=backbone))
    return adapted, {
        **params,
        "backbone": add_lora(params["backbone"], stage.lora, jax.random.key(stage.seed)),
    }


def group_of(path: str) -> str:
    """The subtree that tables and hashes speak of: the first two names of a path (`encoders/image`)."""
    return "/".join(path.split("/")[:2])


def freeze_rows(params: Any, stage: StageConfig) -> list[dict[str, Any]]:
    """One row a group, state and multiplier: {"group", "state", "tensors", "parameters", "multiplier"}.

    Low-rank adapters have rows of their own. `multiplier` is None where frozen. Leaves may be shapes.
    """
    trained = multipliers(params, stage)
    rows: dict[tuple, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        group = group_of(path) + (" (LoRA)" if path.endswith(("/lora_a", "/lora_b")) else "")
        multiplier = trained.get(path)
        row = {
            "group": group,
            "state": "frozen" if multiplier is None else "trained",
            "tensors": 0,
            "parameters": 0,
        }
        row = rows.setdefault((group, multiplier), {**row, "multiplier": multiplier})
        row["tensors"] += 1
        row["parameters"] += math.prod(leaf.shape)
    return list(rows.values())


def freeze_table(params: Any, stage: StageConfig) -> str:
    """Who is trained and who is frozen, as plain text: part, state, tensors, parameters, multiplier."""
    rows = freeze_rows(params, stage)
    cells = [("part", "state", "tensors", "parameters", "lr x")]
    for row in rows:
        multiplier = "" if row["multiplier"] is None else f"{row['multiplier']:g}"
        cells.append((row["group"], row["state"], str(row["tensors"]), f"{row['parameters']:,}", multiplier))
    for state in ("trained", "frozen"):
        of = [row for row in rows if row["state"] == state]
        counts = str(sum(row["tensors"] for row in of)), f"{sum(row['parameters'] for row in of):,}"
        cells.append(("total", state, *counts, ""))
    return f"stage {stage.name}: {stage.steps} steps, learning rate {stage.learning_rate:g}\n" + columns(
        cells
    )


def columns(cells: list[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns, the first two to the left; a rule stands under the head."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def fingerprint(flat: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each group: over path, dtype, shape and bytes of its leaves in sorted order.

    Leaves that are spread over processes are gathered one at a time.
    """
    hashes: dict[str, Any] = {}
    for path in sorted(flat):
        leaf = flat[path]
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest = hashes.setdefault(group_of(path), hashlib.sha256())
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return {group: digest.hexdigest() for group, digest in hashes.items()}


def certificate(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The table that proves that nothing frozen moved: each group's hash before and after.

    Args:
        before, after: `fingerprint` of the frozen leaves at the stage's start and end.

    Raises:
        RuntimeError: a hash differs, or a group is on one side only; the message names every such group.
    """
    moved = [group for group in sorted({*before, *after}) if before.get(group) != after.get(group)]
    if moved:
        raise RuntimeError(f"frozen parameters changed while training: {', '.join(moved)}")
    if not before:
        return "nothing was frozen in this stage"
    cells = [("frozen part", "unchanged", "SHA-256 before", "SHA-256 after")]
    cells += [(group, "yes", before[group][:16], after[group][:16]) for group in sorted(before)]
    return columns(cells)
