import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import manifest
from mmjax.checkpoint import CheckpointError, Checkpoints, load_params, read_metadata, save_params
from mmjax.distributed.mesh import MeshConfig, make_mesh

ROOT = pathlib.Path(__file__).parents[1]
SPECS = {"embed": P("tensor", "fsdp"), "blocks": {"kernel": P(None, "fsdp", "tensor"), "scale": P()}}


def params():
    rng = np.random.default_rng(0)
    return {
        "embed": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
        "blocks": {
            "kernel": jnp.asarray(rng.standard_normal((3, 8, 24)), jnp.float32),
            "scale": jnp.asarray(rng.standard_normal((3, 5)), jnp.bfloat16),
        },
    }


def state():
    """What a train loop keeps: params, an optimiser's named tuples, a count and typed random keys."""
    tree = params()
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        "params": tree,
        "optimiser": optimiser.init(tree),
        "step": jnp.int32(16777217),
        "rng": jax.random.split(jax.random.key(3, impl="rbg"), 4),
        "unused": None,
    }


def on_mesh(tree, mesh):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, SPECS)


def like_on(tree, mesh):
    def like(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(like, tree, SPECS)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same(got, want):
    def bits(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(bits(a), bits(b))


def largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run with steps 10 and 20, written once and copied by the tests that damage it."""
    directory = tmp_path_factory.mktemp("written") / "run"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(10, state(), {"rows_seen": 80})
        checkpoints.save(20, jax.tree.map(lambda x: x, state()), {"rows_seen": 160})
    return directory


@pytest.fixture
def run(two_steps, tmp_path):
    return pathlib.Path(shutil.copytree(two_steps, tmp_path / "run"))


def test_a_train_state_comes_back_bit_for_bit(run):
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == checkpoints.latest(verify=True) == 20
    assert checkpoints.metadata(20) == {"rows_seen": 160, "step": 20}
    assert_same(checkpoints.restore(20, shapes(state())), state())
    assert_same(checkpoints.restore(10, state()), state())


def test_arrays_bound_to_no_device_come_back_so(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=8))
    state = {"w": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P("fsdp"))), "step": jnp.int32(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {}, wait=True)
        back = checkpoints.restore(3, state)
    assert not back["step"].committed and back["w"].sharding == state["w"].sharding
    total = jax.jit(lambda tree: tree["w"].sum() + tree["step"])(back)
    assert float(total) == 123


def test_restore_onto_other_meshes(tmp_path):
    want = params()
    directory = tmp_path / "run"
    meshes = [
        make_mesh(MeshConfig(fsdp=8)),
        make_mesh(MeshConfig(fsdp=2, tensor=4)),
        make_mesh(MeshConfig(), jax.devices()[:1]),
    ]
    current = on_mesh(want, meshes[0])
    with Checkpoints(directory) as checkpoints:
        for step, mesh in enumerate(meshes):
            checkpoints.save(step, current, {}, wait=True)
            current = checkpoints.restore(step, like_on(want, mesh))
            for leaf, spec in zip(jax.tree.leaves(current), jax.tree.leaves(SPECS), strict=True):
                assert leaf.sharding == NamedSharding(mesh, spec)
            assert_same(current, want)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_alone_reads_the_arrays(run):
    from orbax.checkpoint import v1 as ocp

    read = ocp.load(run / "20" / "state")
    np.testing.assert_array_equal(read["params"]["embed"], params()["embed"])


def test_partial_restore_takes_what_is_asked_for(run):
    checkpoints = Checkpoints(run)
    with pytest.raises(CheckpointError, match="left over: optimiser/1/0/mu/embed"):
        checkpoints.restore(20, {"params": params()})
    assert_same(checkpoints.restore(20, {"params": params()}, partial=True)["params"], params())
    with pytest.raises(CheckpointError, match="missing: params/extra"):
        checkpoints.restore(20, {"params": {"extra": jnp.ones(2)}}, partial=True)


def test_every_leaf_that_differs_is_named_before_anything_is_read(run, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    monkeypatch.setattr(ocp, "load", lambda *_: pytest.fail("read although the trees differ"))
    like = shapes(state())
    like["params"]["embed"] = jax.ShapeDtypeStruct((16, 9), jnp.float32)
    like["params"]["blocks"]["kernel"] = jax.ShapeDtypeStruct((3, 8, 24), jnp.bfloat16)
    like["params"]["blocks"]["lora_a"] = jax.ShapeDtypeStruct((3, 8, 2), jnp.float32)
    like["step"] = jax.ShapeDtypeStruct((), jnp.float32)
    del like["params"]["blocks"]["scale"]
    with pytest.raises(CheckpointError) as error:
        Checkpoints(run).restore(20, like)
    assert str(error.value).splitlines() == [
        f"{run}/20 does not fit what is asked for:",
        "  differs: params/blocks/kernel is stored as float32[3, 8, 24], asked for as bfloat16[3, 8, 24]",
        "  differs: params/embed is stored as float32[16, 8], asked for as float32[16, 9]",
        "  differs: step is stored as int32[], asked for as float32[]",
        "  left over: params/blocks/scale bfloat16[3, 5] is stored and not asked for",
        "  missing: params/blocks/lora_a float32[3, 8, 2] is asked for and not stored",
    ]


@pytest.mark.parametrize("where", [0.0, 0.37, 0.999])
def test_one_flipped_byte_is_found_by_name(run, where):
    path = largest_file(run / "20" / "state")
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0x10
    path.write_bytes(content)
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == 20  # sizes are as they should be
    name = path.relative_to(run / "20")
    with pytest.raises(CheckpointError, match=f"{name} has changed"):
        checkpoints.restore(20, state())
    with pytest.raises(CheckpointError, match=f"20 is damaged: {name}.*Older steps: 10"):
        checkpoints.latest(verify=True)
    assert checkpoints.latest(verify=True, allow_older=True) == 10


@pytest.mark.parametrize("damage", ["truncated", "deleted", "manifest cut", "metadata cut"])
def test_damage_is_reported_and_never_passed_over_silently(run, damage, caplog):
    path = {"manifest cut": run / "20/manifest.json", "metadata cut": run / "20/mmjax.json"}.get(damage)
    path = path or largest_file(run / "20" / "state")
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    checkpoints = Checkpoints(run)
    with pytest.raises(CheckpointError, match=rf"run/20 is damaged: .*{path.name}.*Older steps: 10"):
        checkpoints.latest()
    assert checkpoints.latest(allow_older=True) == 10
    assert path.name in caplog.text
    with pytest.raises(CheckpointError, match=path.name):
        checkpoints.restore(20, state())


def test_what_has_no_manifest_is_no_checkpoint(run):
    (run / "20" / "manifest.json").unlink()
    (run / "30").mkdir()
    (run / "40.orbax-checkpoint-tmp").mkdir()
    (run / "007").mkdir()
    (run / "notes").mkdir()
    (run / "50").write_text("a file")
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() == 10
    with pytest.raises(CheckpointError, match="20 has no manifest.json"):
        checkpoints.restore(20, state())
    with pytest.raises(CheckpointError, match="60 does not exist"):
        checkpoints.restore(60, state())
    assert Checkpoints(run / "nowhere").latest() is None


def test_keep_the_newest_and_clear_unfinished_ones(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 3, 5, 12):
            assert checkpoints.save(step, {"w": jnp.full((4,), step)}, {})
        assert not checkpoints.save(12, {"w": jnp.zeros((4,))}, {})  # saved by this object already
        checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "5", "mine.txt"]
        assert checkpoints.restore(12, {"w": jnp.zeros((4,), jnp.int32)})["w"][0] == 12


def test_a_run_that_went_back_sets_newer_steps_aside(run):
    checkpoints = Checkpoints(run)
    for step in (20, 15):
        with pytest.raises(CheckpointError, match=rf"cannot save step {step}: .*\[20\].*set_aside"):
            checkpoints.save(step, state(), {})
    checkpoints.set_aside(after=10)
    assert checkpoints.latest() == 10
    checkpoints.save(15, state(), {}, wait=True)
    assert checkpoints.latest() == 15
    assert (run / "20.aside").exists()


def test_arrays_may_be_donated_after_save_returns(tmp_path):
    start = np.arange(3_000_000, dtype=np.float32)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    mesh = make_mesh(MeshConfig(fsdp=8))
    tree = {
        "one": jnp.array(start),
        "split": jax.device_put(start, NamedSharding(mesh, P("fsdp"))),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        after = jax.block_until_ready(step(tree))
    assert float(after["one"][5]) == -1
    read = checkpoints.restore(1, after)
    np.testing.assert_array_equal(read["one"], start)
    np.testing.assert_array_equal(read["split"], start)


def test_not_finite_is_refused_by_name(tmp_path):
    bad = {"a": jnp.array([1, jnp.nan], jnp.bfloat16), "b": np.array([np.inf], np.float32)}
    tree = {"good": jnp.ones(3), "bad": bad}
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not saved: bad/a, bad/b"):
        checkpoints.save(1, tree, {})
    assert checkpoints.latest() is None
    checkpoints.save(1, tree, {}, wait=True, allow_nonfinite=True)
    assert checkpoints.latest() == 1
    with pytest.raises(CheckpointError, match="not saved: bad/a, bad/b"):
        save_params(tmp_path / "model", tree, {})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("tree", "metadata", "message"),
    [
        ({"w": [1.5]}, {}, "w/0: expected an array, got float 1.5"),
        ({"a/b": jnp.ones(2)}, {}, "'a/b' is no name"),
        ({"w": jnp.ones((3, 0))}, {}, "without elements.*w"),
        ({"w": np.arange(3)}, {}, "w: jax would read int64 back narrower"),
        ({}, {}, "no arrays"),
        ({"w": jnp.ones(2)}, {"loss": float("nan")}, "no JSON"),
        ({"w": jnp.ones(2)}, {"path": object()}, "no JSON"),
    ],
)
def test_what_cannot_be_saved_is_said_at_once(tmp_path, tree, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).save(1, tree, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(4)}, {}, wait=True)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "finish", full)
        checkpoints.save(2, {"w": jnp.ones(4)}, {})
        with pytest.raises(CheckpointError, match="2 was not saved: no space left"):
            checkpoints.wait()
    assert checkpoints.latest() == 1
    assert checkpoints.save(2, {"w": jnp.ones(4)}, {}, wait=True)
    assert checkpoints.latest() == 2


def test_model_directory_describes_itself(tmp_path):
    directory = tmp_path / "model"
    config = {"width": 8, "kind": "decoder"}
    save_params(directory, params(), {"config": config}, files={"tokenizer/vocab.txt": b"a\nb\n"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert read_metadata(directory) == {"config": config}
    manifest = json.loads((directory / "manifest.json").read_text())["files"]
    on_disk = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert set(manifest) == on_disk - {"manifest.json"}
    assert_same(load_params(directory), params())
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    got = load_params(directory, like_on(params(), mesh))
    assert got["embed"].sharding == NamedSharding(mesh, P("tensor", "fsdp"))
    assert_same(got, params())
    with pytest.raises(CheckpointError, match=r"embed is stored as .*16, 8.*asked for as .*4, 8"):
        load_params(directory, {**params(), "embed": jnp.ones((4, 8))})
    (directory / "tokenizer" / "vocab.txt").write_bytes(b"a\nc\n")
    with pytest.raises(CheckpointError, match="tokenizer/vocab.txt has changed"):
        load_params(directory)


def test_host_arrays_are_saved_as_they_are(tmp_path):
    tree = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "h": np.ones((2,), jnp.bfloat16)}
    save_params(tmp_path / "model", tree, {})
    got = load_params(tmp_path / "model")
    np.testing.assert_array_equal(got["w"], tree["w"])
    assert got["h"].dtype == jnp.bfloat16


def test_overwriting_keeps_the_old_model_until_the_new_is_whole(tmp_path, monkeypatch):
    directory = tmp_path / "model"
    save_params(directory, {"w": jnp.zeros(3)}, {"version": 1})

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "finish", full)
        with pytest.raises(OSError, match="no space left"):
            save_params(directory, {"w": jnp.ones(3)}, {"version": 2})
    assert read_metadata(directory) == {"version": 1}
    assert float(load_params(directory)["w"][0]) == 0

    # Killed between the two renames: the old one is found again by the next save, whatever that does.
    directory.rename(tmp_path / "model.previous")
    with pytest.raises(CheckpointError, match="interrupted overwrite left .*model.previous"):
        load_params(directory)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "finish", full)
        with pytest.raises(OSError, match="no space left"):
            save_params(directory, {"w": jnp.ones(3)}, {"version": 2})
    assert read_metadata(directory) == {"version": 1}

    save_params(directory, {"w": jnp.ones(3)}, {"version": 3})
    assert read_metadata(directory) == {"version": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="no mmjax model; remove it first"):
        save_params(tmp_path, params(), {})
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(CheckpointError, match="has no manifest.json"):
        load_params(tmp_path)


def test_unstacked_blocks_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="blocks/0/w: params must be nested dicts"):
        save_params(tmp_path / "model", {"blocks": ({"w": jnp.ones(2)}, {"w": jnp.ones(2)})}, {})


SAVE_UNTIL_KILLED = """
import sys
import jax.numpy as jnp
from mmjax.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=2)
step = checkpoints.latest() or 0
print("from", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, {"w": jnp.full((300_000,), float(step)), "b": jnp.full((7,), step)}, {"at": step})
    print("saving", step, flush=True)
"""


def test_a_kill_while_saving_leaves_the_latest_whole(tmp_path):
    like = {"w": jnp.zeros((300_000,)), "b": jnp.zeros((7,), jnp.int32)}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    reached = 0
    for delay in (0.0, 0.021):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline().split() == ["from", str(reached)]
        for _ in range(4):
            last = int(process.stdout.readline().split()[1])
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoints = Checkpoints(tmp_path)
        latest = checkpoints.latest(verify=True)
        assert latest >= last - 1  # the save before the last one was waited for
        state = checkpoints.restore(latest, like)
        assert float(state["w"].min()) == float(state["w"].max()) == latest == int(state["b"][0])
        assert checkpoints.metadata(latest) == {"at": latest, "step": latest}
        reached = latest
