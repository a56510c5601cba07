"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the terminal."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricsWriter:
    """One line of JSON a call in workdir/metrics.jsonl, and the same in workdir/tensorboard.

    Args:
        workdir: made if absent.
        resume_step: the step that was restored; lines behind it (and a line cut short by a kill) are dropped,
            so that a resumed run leaves the file that an unbroken one would. 0 starts afresh.
        tensorboard: whether to write event files too.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0, tensorboard: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            [line for line in read_metrics(self.path) if line["step"] <= resume_step] if resume_step else []
        )
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self.path)
        self._file = self.path.open("a")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds {"step": step, **values}; a value that is not finite is written as null."""
        plain = {key: _plain(value) for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in plain.items():
                if value is not None:
                    self._board.add_scalar(key, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Puts a uint8 image [H, W, 3] on TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> int | float | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order, without one that a kill cut short; [] if there is none."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path) as file:
        for text in file:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


class Progress:
    """Where the run stands: a rich progress bar on a terminal, else a plain line a log.

    Args:
        name, total, start: the stage, its steps, and how many are done.
        terminal: None asks the standard output.
    """

    def __init__(self, name: str, total: int, start: int = 0, terminal: bool | None = None):
        self._name, self._total, self._first = name, total, start
        self._began = time.perf_counter()
        self._bar: Any = None
        if sys.stdout.isatty() if terminal is None else terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(name, total=total, completed=start, status="compiling")
            self._bar.start()

    def update(self, step: int) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a step's numbers."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status(values))
            return
        done = step - self._first
        left = (time.perf_counter() - self._began) / done * (self._total - step) if done else 0.0
        print(f"{self._name} {step}/{self._total}  {status(values)}  ETA {duration(left)}", flush=True)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.stop()


def status(values: Mapping[str, float]) -> str:
    """One line of the numbers that a person watches, those that are there."""
    shapes = {
        "loss": lambda v: f"loss {v:.4f}",
        "accuracy": lambda v: f"acc {v:.3f}",
        "grad_norm": lambda v: f"grad {v:.3g}",
        "router_load": lambda v: f"load {v:.2f}",
        "lr": lambda v: f"lr {v:.2e}",
        "tokens_per_s": lambda v: f"{v:,.0f} tok/s",
        "mfu": lambda v: f"MFU {v:.1%}",
        "data_wait": lambda v: f"data wait {v:.0%}",
        "skipped": lambda v: f"skipped {v:.0f}" if v else "",
    }
    parts = [shape(values[key]) for key, shape in shapes.items() if values.get(key) is not None]
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
