"""Model directories and training checkpoints: one thin wrapper over Orbax that notices damage.

Orbax writes and reshards arrays. What it lets pass is checked here: a flipped byte, a leaf of another dtype
or shape, an empty directory taken for the latest step, parameters that are NaN. Every directory holds

    params/ or state/           the arrays, written by Orbax; `orbax.checkpoint.v1.load` reads it without mmjax
    mmjax.json, manifest.json   what they are, and that they are whole (mmjax/manifest.py)

With several processes the directory must be on a file system that all share, and all must call together.
"""

import functools
import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mmjax import manifest
from mmjax.distributed.processes import agreed, from_main, is_main
from mmjax.manifest import FORMAT, MANIFEST, METADATA, CheckpointError
from mmjax.paths import unflatten

logger = logging.getLogger(__name__)

def save_params(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    metadata: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Writes a self-describing model directory; what stood there before stays whole until the new one is.

    Args:
        directory: where; an mmjax model directory there is replaced, anything else that is not empty is kept.
        params: nested dicts of numpy or jax arrays, blocks stacked.
        metadata: any JSON (the model's config, what it was trained on).
        files: further files by name (a tokenizer), covered by the manifest too.
        allow_nonfinite: write parameters that hold NaN or infinities.

    Raises:
        CheckpointError: params that are no nested dicts or hold NaN or infinities, metadata that is no JSON,
            or a directory with other content.
    """
    final = _absolute(directory)
    partial, previous = (final.parent / f"{final.name}.{end}" for end in ("partial", "previous"))
    leaves = _named(params)
    with agreed():
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            if not all(isinstance(key, jax.tree_util.DictKey) for key in path):
                raise CheckpointError(f"{_name(path)}: params must be nested dicts, with stacked blocks")
        text = _describe(metadata, leaves)
        if not allow_nonfinite:
            _check_finite(leaves)
        if is_main():
            if previous.exists() and not final.exists():
                previous.rename(final)
            if final.exists() and not (final / METADATA).exists() and any(final.iterdir()):
                raise CheckpointError(f"{final} holds something that is no mmjax model; remove it first")
            manifest.remove(partial)
            partial.mkdir(parents=True)
    _write_arrays(partial / "params", leaves).result()
    with agreed():
        if is_main():
            for name, content in (files or {}).items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
            manifest.finish(partial, text)
            manifest.remove(previous)
            if final.exists():
                final.rename(previous)
            try:
                partial.rename(final)
            except BaseException:
                if previous.exists():
                    previous.rename(final)
                raise
            manifest.remove(previous)


def load_params(directory: str | os.PathLike, like: Any = None, verify: bool = True) -> Any:
    """The params of a model directory, resharded onto whatever mesh `like` names.

    Args:
        directory: what `save_params` wrote.
        like: a tree of `jax.ShapeDtypeStruct` (with shardings) or arrays; None reads everything onto the
            default device, which only a run of one process can do.
        verify: compare every file with its SHA-256 first.

    Raises:
        CheckpointError: no model directory, damage, or leaves that differ from `like`; all are named before
            anything is read.
    """
    path = _absolute(directory)
    manifest.check(path, verify)
    stored = manifest.read_description(path)["leaves"]
    if like is not None:
        return _restore(path, "params", stored, like)
    params: dict[str, Any] = {}
    for name, text in stored.items():
        dtype, dimensions = text.rstrip("]").split("[")
        shape = tuple(int(size) for size in dimensions.split(",") if size)
        params[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return _restore(path, "params", stored, unflatten(params))


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a model directory or checkpoint; CheckpointError if it is none, or is unfinished."""
    path = _absolute(directory)
    manifest.check(path, verify=False)
    return manifest.read_description(path)["metadata"]


class Checkpoints:
    """The checkpoints of one training run: directory/STEP for the newest `keep` steps.

    Saving returns once the arrays are copied from the devices, and finishes in the background; `wait` or the
    next `save` raise what went wrong there. Use as a context manager, or call `close`.

    Args:
        directory: made if absent; what is not a number in it is left alone.
        keep: how many finished checkpoints stay; None keeps all.
    """

    def __init__(self, directory: str | os.PathLike, keep: int | None = 3):
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be 1 or more, or None for all; got {keep}")
        self.directory = _absolute(directory)
        self.keep = keep
        self._pending: tuple[int, threading.Thread] | None = None
        self._failure: BaseException | None = None
        self._saved: int | None = None

    def save(
        self,
        step: int,
        state: Any,
        metadata: Mapping[str, Any],
        wait: bool = False,
        allow_nonfinite: bool = False,
    ) -> bool:
        """Saves any tree of arrays and typed random keys; the arrays may be donated as soon as it returns.

        Args:
            step: more than that of every finished checkpoint here.
            state: what `restore` will be asked for.
            metadata: any JSON, for instance where the data stood; `step` is added to it.
            wait: return only when the checkpoint is finished.
            allow_nonfinite: save a state that holds NaN or infinities.

        Returns:
            False if this object saved this step already; nothing is written then.

        Raises:
            CheckpointError: NaN or infinities (their leaves are named), metadata that is no JSON, a step that
                is not new, or the failure of the save before this one.
        """
        self.wait()
        if step == self._saved:
            return False
        directory = self.directory / str(step)
        with agreed():
            leaves = _named(state)
            text = _describe({**metadata, "step": step}, leaves)
            if not allow_nonfinite:
                _check_finite(leaves)
            if is_main():
                newer = [other for other in self._steps() if other >= step]
                if newer:
                    raise CheckpointError(
                        f"cannot save step {step}: {self.directory} holds {newer}. If the run went back on "
                        f"purpose, call set_aside(after=STEP) or remove the steps after it"
                    )
                manifest.remove(directory)
                directory.mkdir(parents=True)
        response = _write_arrays(directory / "state", leaves)
        thread = threading.Thread(
            target=self._finalise, args=(directory, response, text), name=f"mmjax-checkpoint-{step}"
        )
        thread.start()
        self._pending = (step, thread)
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Waits until the save that is under way is finished.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is None:
            return
        step, thread = self._pending
        thread.join()
        self._pending, failure, self._failure = None, self._failure, None
        with agreed():
            if failure is not None:
                raise CheckpointError(f"{self.directory / str(step)} was not saved: {failure}") from failure
        self._saved = step

    def latest(self, allow_older: bool = False, verify: bool = False) -> int | None:
        """The newest finished step, or None if there is none. What has no manifest is no checkpoint.

        Args:
            allow_older: when the newest is damaged, log that and take the one before it; `set_aside` then
                makes room for saving the later steps again.
            verify: look for damage by SHA-256, not only by the presence and size of each file.

        Raises:
            CheckpointError: the newest is damaged; the message names its files and the steps before it.
        """
        found = None
        with agreed():
            if is_main():
                steps = sorted(self._steps(), reverse=True)
                for place, step in enumerate(steps):
                    problems = manifest.problems(self.directory / str(step), verify)
                    if not problems:
                        found = step
                        break
                    message = f"checkpoint {self.directory / str(step)} is damaged: {'; '.join(problems)}"
                    if not allow_older:
                        older = ", ".join(map(str, steps[place + 1 :])) or "none"
                        raise CheckpointError(f"{message}. Older steps: {older} (use allow_older=True)")
                    logger.warning("%s; looking for an older one", message)
        return from_main(found)

    def restore(self, step: int, like: Any, verify: bool = True, partial: bool = False) -> Any:
        """The state of a step, laid out as `like`, whatever mesh and processes saved it.

        Args:
            step: one that `latest` returned.
            like: a tree of `jax.ShapeDtypeStruct` (with shardings) or arrays. A leaf without one goes to the
                default device, bound to none, which only a run of one process can do.
            verify: compare every file with its SHA-256 first.
            partial: stored leaves that `like` lacks are left unread, not an error.

        Raises:
            CheckpointError: damage, or one message with every leaf that is missing, left over, or stored with
                another shape or dtype; nothing is cast, cut or read before.
        """
        directory = self.directory / str(step)
        manifest.check(directory, verify)
        return _restore(directory, "state", manifest.read_description(directory)["leaves"], like, partial)

    def metadata(self, step: int) -> dict[str, Any]:
        """What was given to `save` for this step, with `step`."""
        return read_metadata(self.directory / str(step))

    def set_aside(self, after: int) -> None:
        """Renames every step after `after` to STEP.aside, so that a run that went back can save again."""
        self.wait()
        with agreed():
            if is_main():
                for step in self._steps():
                    if step > after:
                        aside = self.directory / f"{step}.aside"
                        manifest.remove(aside)
                        (self.directory / str(step)).rename(aside)
        if self._saved is not None and self._saved > after:
            self._saved = None

    def close(self) -> None:
        """Waits for the save that is under way."""
        self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _finalise(self, directory: epath.Path, response: Any, text: str) -> None:
        try:
            response.result()
            if is_main():
                manifest.finish(directory, text)
                self._prune()
        except BaseException as error:  # raised again by wait()
            self._failure = error

    def _steps(self, finished: bool = True) -> list[int]:
        """Steps with a manifest, or without one, sorted."""
        if not self.directory.exists():
            return []
        names = [path.name for path in self.directory.iterdir() if path.name.isdecimal()]
        steps = sorted(int(name) for name in names if str(int(name)) == name)
        return [step for step in steps if (self.directory / str(step) / MANIFEST).exists() == finished]

    def _prune(self) -> None:
        steps = self._steps()
        stale = [] if self.keep is None else steps[: -self.keep]
        unfinished = [step for step in self._steps(finished=False) if step < steps[-1]]
        for step in [*stale, *unfinished]:
            manifest.remove(self.directory / str(step))


def _write_arrays(path: epath.Path, leaves: dict[str, Any]) -> Any:
    from orbax.checkpoint import v1 as ocp

    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        tree[name] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return ocp.save_async(path, unflatten(tree))


def _restore(path: epath.Path, part: str, stored: dict[str, str], like: Any, partial: bool = False) -> Any:
    from orbax.checkpoint import v1 as ocp

    wanted = _named(like)
    _compare(path, stored, wanted, partial)
    tree: dict[str, Any] = {}
    for name, leaf in wanted.items():
        target = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        # An array that was bound to no device must not come back bound to one: it could no longer be used
        # beside arrays on a mesh. Such leaves are read to the host and left to jax.
        sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
        if sharding is None and jax.process_count() > 1:
            raise CheckpointError(f"{name}: with several processes every leaf to read needs a sharding")
        if sharding is None:
            target = np.empty(target.shape, target.dtype)
        else:
            target = jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)
        tree[name] = target
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    with context:
        found = ocp.load(path / part, unflatten(tree))
    read = {name: jnp.asarray(leaf) for name, leaf in _named(found).items()}
    for name, leaf in wanted.items():
        if _is_key(leaf):
            read[name] = jax.random.wrap_key_data(read[name], impl=_key_impls()[str(leaf.dtype)])
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [read[name] for name in wanted])


def _compare(path: epath.Path, stored: dict[str, str], wanted: dict[str, Any], partial: bool) -> None:
    problems = []
    for name, leaf in wanted.items():
        if name not in stored:
            problems.append(f"missing: {name} {_show(leaf)} is asked for and not stored")
        elif stored[name] != _show(leaf):
            problems.append(f"differs: {name} is stored as {stored[name]}, asked for as {_show(leaf)}")
    if not partial:
        for name in stored.keys() - wanted.keys():
            problems.append(f"left over: {name} {stored[name]} is stored and not asked for")
    if problems:
        raise CheckpointError("\n  ".join([f"{path} does not fit what is asked for:", *sorted(problems)]))


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path, as "opt/0/mu/kernel"."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _name(path)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise CheckpointError(f"{name}: expected an array, got {type(leaf).__name__} {leaf!r}")
        if not name or name in leaves or name.count("/") != len(path) - 1:
            raise CheckpointError(f"{name!r} is no name for a leaf: empty, given twice, or a key with '/'")
        if not _is_key(leaf) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise CheckpointError(f"{name}: jax would read {leaf.dtype} back narrower; cast it or enable x64")
        leaves[name] = leaf
    if not leaves:
        raise CheckpointError("the tree has no arrays")
    return leaves


def _show(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.cache
def _key_impls() -> dict[str, str]:
    """The implementation of typed random keys by the name of their dtype."""
    impls = ("threefry2x32", "rbg", "unsafe_rbg")
    return {str(jax.random.key(0, impl=impl).dtype): impl for impl in impls}


def _in_host_memory(leaf: Any) -> bool:
    """Whether numpy can look at an array where it lies: nothing is copied, and no program compiled for its shape."""
    if not isinstance(leaf, jax.Array):
        return True
    devices = leaf.devices()
    return len(devices) == 1 and leaf.is_fully_addressable and next(iter(devices)).platform == "cpu"


def _check_finite(leaves: dict[str, Any]) -> None:
    checks = {
        name: np.isfinite(np.asarray(leaf)).all() if _in_host_memory(leaf) else _all_finite(leaf)
        for name, leaf in leaves.items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    bad = [name for name, finite in jax.device_get(checks).items() if not finite]
    if bad:
        raise CheckpointError(f"NaN or infinite, so not saved: {', '.join(bad)} (allow_nonfinite=True saves)")


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _describe(metadata: Mapping[str, Any], leaves: dict[str, Any]) -> str:
    empty = [name for name, leaf in leaves.items() if 0 in leaf.shape]
    if empty:
        raise CheckpointError(f"arrays without elements cannot be saved: {', '.join(empty)}")
    table = {name: _show(leaf) for name, leaf in leaves.items()}
    document = {"format": FORMAT, "metadata": dict(metadata), "leaves": table}
    try:
        return json.dumps(document, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the metadata is no JSON: {error}") from error


def _absolute(directory: str | os.PathLike) -> epath.Path:
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(os.path.expanduser(text)))
