"""metrics.jsonl over a resume, the terminal's lines, and the panel's picture."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.train.metrics import MetricsWriter, Progress, duration, read_metrics, status
from mmjax.train.panels import PanelSample, draw_panel


def test_a_resume_drops_what_came_after_the_restored_step(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 6):
        writer.write(step, {"loss": np.float32(step / 3)})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    writer = MetricsWriter(tmp_path, resume_step=3, tensorboard=False)
    writer.write(4, {"loss": 9.0})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[-1]) == {"step": 4, "loss": 9.0}
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_what_is_not_finite_is_null_and_tensorboard_gets_the_rest(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "lr": 0.5})
    writer.image(1, "panel", np.zeros((4, 5, 3), np.uint8))
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "lr": 0.5}
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 100


def test_plain_lines_off_a_terminal(capsys):
    progress = Progress("align", 10, start=4, terminal=False)
    progress.log(6, {"loss": 1.25, "tokens_per_s": 12345.6, "mfu": 0.123, "data_wait": 0.05, "skipped": 0})
    progress.say("[not markup]")
    progress.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("align 6/10  loss 1.2500  12,346 tok/s  MFU 12.3%  data wait 5%  ETA 0:0")
    assert second == "[not markup]"


def test_a_bar_on_a_terminal(capsys):
    progress = Progress("align", 10, terminal=True)
    progress.update(3)
    progress.log(3, {"loss": 1.25})
    progress.say("[not markup]")
    progress.close()
    out = capsys.readouterr().out
    assert "[not markup]" in out and "3/10" in out and "loss 1.2500" in out


def test_durations_and_skips():
    assert [duration(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]
    assert status({"skipped": 3, "loss": None}) == "skipped 3"


def test_a_panel_has_a_cell_a_sample_and_colours_a_wrong_answer(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 48, 3), np.uint8)
    good = PanelSample(image, "What is this?", "a blue frog", "a blue frog ")
    bad = PanelSample(rng.integers(0, 255, (500, 300, 3), np.uint8), "What? " * 40, "yes", "no")
    wrote = draw_panel([good, bad, PanelSample(None, "2 + 2?", "4", "4")], tmp_path / "p" / "1.png", columns=2)
    read = np.asarray(Image.open(tmp_path / "p" / "1.png"))
    np.testing.assert_array_equal(read, wrote)
    left, right = read[:, : read.shape[1] // 2], read[:, read.shape[1] // 2 :]
    red, green = (180, 30, 30), (20, 120, 40)
    assert (right == red).all(-1).any() and not (left == red).all(-1).any()
    assert (left == green).all(-1).any()
    # Three times larger, pixel for pixel, in the middle of its cell.
    np.testing.assert_array_equal(read[8 + 16 : 8 + 16 + 192 : 3, 8 + 40 : 8 + 40 + 144 : 3], image)
    with pytest.raises(ValueError, match="at least one sample"):
        draw_panel([], tmp_path / "2.png")
