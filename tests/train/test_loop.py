"""The loop: torch's loss curve, bit-for-bit resume, stops, finished stages, adapters, what lies in the folder."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.contracts import Batch, TextStream
from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.interop.huggingface.llama import table
from mmjax.interop.table import export_params
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.paths import flatten
from mmjax.train.loop import Prefetch, finished, run_stages, train_stage
from mmjax.train.metrics import read_metrics
from mmjax.train.panels import PanelSample
from mmjax.train.stage import StageConfig

SIZES = dict(vocab_size=40, width=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=24)
MODEL = MultimodalLM(MultimodalLMConfig(DecoderConfig(**SIZES)))
ALL = ((".*", "train"),)


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.2 * rng.normal(size=shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, MODEL.param_shapes())


class Pipeline:
    """Batch n is drawn from seed n; `fail_at` raises instead, `end_at` ends."""

    def __init__(self, rows=4, length=7, broken=(), end_at=None, fail_at=None):
        self.rows, self.length, self.broken, self.end_at, self.fail_at = rows, length, broken, end_at, fail_at

    def batch(self, step):
        rng = np.random.default_rng(step)
        shape = (self.rows, self.length)
        tokens = rng.integers(0, SIZES["vocab_size"], shape).astype(np.int32)
        tokens[:, 1::2] = tokens[:, :1]  # something to learn
        weights = (rng.random(shape) < 0.7).astype(np.float32)
        weights[0, 1] = np.nan if step in self.broken else 1
        positions = np.tile(np.arange(self.length, dtype=np.int32), (self.rows, 1))
        return Batch({"text": TextStream(tokens, positions, np.ones(shape, np.int32), weights)})

    def iterator(self, start_step):
        step = start_step
        while step != self.end_at:
            if step == self.fail_at:
                raise OSError("record 17 cannot be read")
            yield self.batch(step)
            step += 1


def make_stage(**options):
    options = {"name": "s", "steps": 6, "trainable": ALL, "learning_rate": 0.01, "log_every": 1, **options}
    return StageConfig(batch_size=4, **options)


def losses(folder):
    keys = ("step", "loss", "grad_norm", "lr", "accuracy", "skipped")
    return [{key: line[key] for key in keys} for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def assert_equal(ours, theirs):
    assert flatten(ours).keys() == flatten(theirs).keys()
    for path, leaf in flatten(theirs).items():
        np.testing.assert_array_equal(flatten(ours)[path], leaf, err_msg=path)


def after(count):
    """A `stop` that is asked after each step and says yes the `count`-th time."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) == count


def test_twenty_steps_have_torchs_loss_curve(tmp_path):
    params, pipeline = make_params(), Pipeline()
    stage = make_stage(steps=20, weight_decay=0.1, warmup_steps=5, clip_norm=0.5)
    trained = train_stage(MODEL, params, stage, pipeline, tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["num_layers"],
        num_attention_heads=SIZES["num_heads"],
        num_key_value_heads=SIZES["num_kv_heads"],
        head_dim=SIZES["head_dim"],
        intermediate_size=SIZES["mlp_width"],
        attn_implementation="eager",
    )
    reference = transformers.LlamaForCausalLM(config).float()
    rows = table(MODEL.config)
    reference.load_state_dict({name: torch.tensor(leaf) for name, leaf in export_params(rows, params)})
    matrices = [leaf for leaf in reference.parameters() if leaf.ndim > 1]
    vectors = [leaf for leaf in reference.parameters() if leaf.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    scale = lambda step: step / 5 if step < 5 else 0.5 * (1 + np.cos(np.pi * (step - 5) / 15))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    curve = []
    for step in range(20):
        text = pipeline.batch(step).text
        labels = torch.tensor(np.where(text.loss_weights > 0, text.tokens, -100), dtype=torch.long)
        loss = reference(input_ids=torch.tensor(text.tokens, dtype=torch.long), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        curve.append((loss.item(), norm.item()))
    ours = losses(tmp_path / "s")
    np.testing.assert_allclose([(line["loss"], line["grad_norm"]) for line in ours], curve, rtol=1e-4)
    assert np.mean(curve[-5:], axis=0)[0] < np.mean(curve[:5], axis=0)[0]
    for name, leaf in export_params(rows, trained):
        theirs = reference.get_parameter(name).detach().numpy()
        assert np.abs(leaf - theirs).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(theirs**2))), name


@pytest.mark.quick("2")
@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_three_steps_a_stop_and_three_steps_are_six_steps(tmp_path, checkpoint_every):
    params, stage = make_params(), make_stage(checkpoint_every=checkpoint_every, accumulate=2)
    straight = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "straight")
    with pytest.raises(SystemExit) as stopped:
        train_stage(MODEL, params, stage, Pipeline(), tmp_path / "broken", stop=after(3))
    assert stopped.value.code == 77
    assert [line["step"] for line in losses(tmp_path / "broken" / "s")] == [1, 2, 3]
    assert not finished(stage, tmp_path / "broken")
    resumed = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "broken")
    assert_equal(resumed, straight)
    assert losses(tmp_path / "broken" / "s") == losses(tmp_path / "straight" / "s")
    assert finished(stage, tmp_path / "broken")


def test_a_crash_goes_back_to_the_last_checkpoint(tmp_path):
    params, stage = make_params(), make_stage(checkpoint_every=2)
    straight = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "straight")
    with pytest.raises(OSError, match="record 17"):
        train_stage(MODEL, params, stage, Pipeline(fail_at=5), tmp_path / "broken")
    # Damage to the newest is seen, and the one before it taken.
    newest = tmp_path / "broken" / "s" / "checkpoints" / "4"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    resumed = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "broken")
    assert_equal(resumed, straight)
    assert losses(tmp_path / "broken" / "s") == losses(tmp_path / "straight" / "s")


def test_sigterm_saves_and_exits_with_77(tmp_path):
    program = textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import test_loop as t
        stage = t.make_stage(steps=100000, log_every=1)
        t.train_stage(t.MODEL, t.make_params(), stage, t.Pipeline(), {str(tmp_path)!r})
    """)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True)
    file = tmp_path / "s" / "metrics.jsonl"
    deadline = time.time() + 240
    while len(read_metrics(file)) < 2 and process.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 77, out
    last = read_metrics(file)[-1]["step"]
    assert f"saved step {last} of 100000" in out
    assert (tmp_path / "s" / "checkpoints" / str(last) / "manifest.json").exists()


def test_a_finished_stage_is_taken_as_it_is(tmp_path, capsys):
    params = make_params()
    stages = [make_stage(name="a", steps=2), make_stage(name="b", steps=3, seed=1)]
    made = []

    def pipeline(stage):
        made.append(stage.name)
        return Pipeline()

    first = run_stages(MODEL, params, stages, pipeline, tmp_path)
    again = run_stages(MODEL, params, stages, pipeline, tmp_path)
    assert made == ["a", "b"]
    assert_equal(first, again)
    with pytest.raises(ConfigError, match="another config.*\n.*learning_rate: 0.01 there, 0.02 here"):
        train_stage(MODEL, params, make_stage(name="a", steps=2, learning_rate=0.02), None, tmp_path)
    with pytest.raises(ConfigError, match="stages must have different names, got a, a"):
        run_stages(MODEL, params, [stages[0]] * 2, pipeline, tmp_path)


def test_adapters_are_trained_alone_and_merged(tmp_path):
    params = make_params()
    lora = LoRAConfig(rank=2, alpha=4.0, targets=("q", "down"))
    stage = make_stage(trainable=((".*/lora_[ab]", "train"),), lora=lora, eval_every=3)
    seen, forward = [], jax.jit(MODEL.forward)

    def evaluate(step, current):
        seen.append(step)
        assert flatten(current).keys() == flatten(params).keys()
        return {"score": float(forward(current, Pipeline().batch(0).texts)[0, 0, 0])}

    trained = train_stage(MODEL, params, stage, Pipeline(), tmp_path, evaluate=evaluate)
    changed = {path for path, leaf in flatten(params).items() if not np.array_equal(leaf, flatten(trained)[path])}
    assert changed == {"backbone/blocks/attn/q/kernel", "backbone/blocks/mlp/down/kernel"}
    for path in changed:
        difference = np.asarray(flatten(trained)[path] - flatten(params)[path], np.float64)
        matrices = difference.reshape(2, -1, 16) if "down" in path else difference.reshape(2, 16, -1)
        assert all(np.linalg.svd(matrix, compute_uv=False)[2] < 1e-5 for matrix in matrices)
    assert seen == [3, 6]
    scores = [line["eval/score"] for line in read_metrics(tmp_path / "s" / "metrics.jsonl") if "eval/score" in line]
    final = forward(trained, Pipeline().batch(0).texts)[0, 0, 0]
    assert scores[1] == pytest.approx(float(final), rel=1e-5)
    table_text = (tmp_path / "s" / "freeze_table.txt").read_text()
    assert "backbone/blocks (LoRA)  trained" in table_text
    proof = json.loads((tmp_path / "s" / "certificate.json").read_text())
    assert set(proof["frozen"]) == {f"backbone/{name}" for name in ("blocks", "embed", "lm_head", "norm")}
    assert all(item["before"] == item["after"] for item in proof["frozen"].values())
    other = {"backbone": {**params["backbone"], "norm": {"scale": params["backbone"]["norm"]["scale"] + 1}}}
    with pytest.raises(ConfigError, match="began with other frozen params: backbone/norm"):
        train_stage(MODEL, other, stage, None, tmp_path)


def test_bfloat16_params_are_trained_in_float32_and_given_back(tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_params())
    stage = make_stage(steps=2, trainable=((".*/q/kernel", "train"),))
    trained = train_stage(MODEL, params, stage, Pipeline(), tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("bfloat16")}
    kept = json.loads((tmp_path / "s" / "checkpoints" / "2" / "mmjax.json").read_text())["leaves"]
    assert "float32" in str(kept["trainable/backbone/blocks/attn/q/kernel"])


@pytest.mark.slow
def test_a_mesh_has_one_devices_losses_and_resumes_on_one_device(tmp_path):
    params, stage = make_params(), make_stage()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    straight = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "one")
    with pytest.raises(SystemExit):
        train_stage(MODEL, params, stage, Pipeline(), tmp_path / "mesh", mesh=mesh, stop=after(3))
    resumed = train_stage(MODEL, params, stage, Pipeline(), tmp_path / "mesh")
    ours, theirs = ([line["loss"] for line in losses(tmp_path / name / "s")] for name in ("mesh", "one"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_skipped_steps_are_counted_or_end_the_run(tmp_path):
    params = make_params()
    train_stage(MODEL, params, make_stage(), Pipeline(broken=(2, 4)), tmp_path)
    assert [line["skipped"] for line in losses(tmp_path / "s")] == [0, 0, 1, 1, 2, 2]
    assert json.loads((tmp_path / "s" / "certificate.json").read_text())["skipped"] == 2
    with pytest.raises(FloatingPointError, match="'t', step 3: loss nan"):
        train_stage(MODEL, params, make_stage(name="t", skip_nonfinite=False), Pipeline(broken=(2,)), tmp_path)
    with pytest.raises(FloatingPointError, match="the 25 steps up to 26"):
        stage = make_stage(name="u", steps=40, log_every=0)
        train_stage(MODEL, params, stage, Pipeline(broken=range(1, 40)), tmp_path)


def test_panels_and_numbers_are_logged(tmp_path, capsys):
    sample = PanelSample(np.zeros((8, 8, 3), np.uint8), "What?", "this", "that")
    stage = make_stage(panel_every=3)
    train_stage(MODEL, make_params(), stage, Pipeline(), tmp_path, panel=lambda step, params: [sample])
    assert sorted(path.name for path in (tmp_path / "s" / "panels").iterdir()) == ["3.png", "6.png"]
    assert Image.open(tmp_path / "s" / "panels" / "3.png").width > 200
    line = read_metrics(tmp_path / "s" / "metrics.jsonl")[-1]
    assert line["compilations"] == 1 and line["tokens_per_s"] > 0
    assert 0 < line["mfu"] < 1 and 0 <= line["data_wait"] <= 1
    out = capsys.readouterr().out
    assert "stage s starts on 1 device(s); peak for MFU" in out and "nothing was frozen" in out


@pytest.mark.parametrize(
    "pipeline, message",
    [
        (Pipeline(end_at=2), "the pipeline ended before step 3 of 6"),
        (Pipeline(rows=5), "5 rows of text, batch_size is 4"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_named(tmp_path, pipeline, message):
    with pytest.raises(ValueError, match=message):
        train_stage(MODEL, make_params(), make_stage(), pipeline, tmp_path)


def test_prefetch_keeps_the_order_and_runs_little_ahead():
    taken = []

    def source():
        for number in range(20):
            taken.append(number)
            yield number

    items = Prefetch(source(), lambda number: number * 2, depth=2)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) <= 4
    assert list(items) == [2 * number for number in range(1, 20)]
    items.close()
    early = Prefetch(source(), lambda number: number)
    next(early)
    early.close()
    assert not early._thread.is_alive()
