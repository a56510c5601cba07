"""Compiles a training step of an any-to-any system for a TPU pod that is not here, and prints its memory a chip.

    TPU_LIBRARY_PATH=.venv/tpu-compiler/libtpu/libtpu.so python tools/compile_any_to_any.py next_gpt:7b decode v5e:16x16

Nothing is run and no array is made: shapes go in, the real compiler of TPUs (libtpu) answers.
"""

import argparse
import dataclasses
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name, value in {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
}.items():  # fmt: skip
    os.environ.setdefault(name, value)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from mmjax.config import from_dict  # noqa: E402
from mmjax.configuration import load_config, to_plain  # noqa: E402
from mmjax.data.contracts import Batch, Media, TextStream  # noqa: E402
from mmjax.distributed.mesh import MeshConfig, check_fits, make_mesh  # noqa: E402
from mmjax.distributed.rules import shardings  # noqa: E402
from mmjax.model import MultimodalLM  # noqa: E402
from mmjax.paths import flatten  # noqa: E402
from mmjax.recipes.assemble import TrainConfig  # noqa: E402
from mmjax.recipes.train import stage_of  # noqa: E402
from mmjax.train.optimizer import make_optimizer  # noqa: E402
from mmjax.train.signal_loss import loss_of  # noqa: E402
from mmjax.train.stage import adapt, multipliers, split  # noqa: E402
from mmjax.train.step import make_train_step, state_shardings  # noqa: E402

GIB = 2**30


def shapes_of_batch(config, rows: int, length: int, ports: tuple[str, ...], mesh) -> Batch:
    """A batch of `rows` texts, with one item of every input port and one signal of each of `ports` a row."""
    over = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def array(*shape, dtype=np.float32):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=over)

    whole = array(length, dtype=np.int32)
    text = TextStream(whole, whole, whole, loss_weights=array(length), media_index=whole)
    media = {port: Media(array(1, *encoder.item_shape)) for port, encoder in config.encoders.items()}
    targets = {}
    for port in ports:
        targets[port] = {"latents": array(1, *config.generators[port].latent_shape), "weights": array(1)}
        if port in config.generator_encoders:
            window = config.generator_encoders[port].max_positions
            targets[port]["captions"] = array(1, window, dtype=np.int32)
    return Batch({"text": text}, media, targets=targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="NAME:SIZE of configs/")
    parser.add_argument("stage")
    parser.add_argument("topology", help="v5e:16x16, v5p:4x4x4, ...")
    parser.add_argument("--fsdp", type=int, default=64, help="ways that weights are split; the rest is data")
    parser.add_argument("--rows", type=int, help="of the global batch; default: one a chip")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--ports", nargs="*", help="generators in the step; default: all")
    args = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = make_mesh(MeshConfig(data=len(devices) // args.fsdp, fsdp=args.fsdp), devices)
    config = from_dict(TrainConfig, to_plain(load_config(args.config)))
    stage = dataclasses.replace(
        stage_of(args.stage, config.stages[args.stage]), batch_size=args.rows or len(devices)
    )
    model = MultimodalLM(config.model, config.dtype, config.param_dtype, config.remat)
    held = {}

    def adapted(tree):
        held["model"], tree = adapt(model, tree, stage)
        return tree

    params = jax.eval_shape(adapted, model.param_shapes())
    model, axes = held["model"], flatten(held["model"].param_axes())
    check_fits(params, held["model"].param_axes(), mesh)
    places = shardings(axes, mesh)
    trainable, frozen = split(params, stage)
    optimizer = make_optimizer(stage, multipliers(params, stage), axes)
    layout = state_shardings(trainable, optimizer, places)
    step = make_train_step(model, stage, optimizer, mesh, layout, loss_of(model, stage.loss_weights))

    def placed(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    state = type(layout)(
        dict(trainable),
        jax.eval_shape(optimizer.init, dict(trainable)),
        *(jax.ShapeDtypeStruct((), np.int32) for _ in range(2)),
    )
    state = jax.tree.map(placed, state, layout)
    frozen = {path: placed(leaf, places[path]) for path, leaf in frozen.items()}
    ports = tuple(args.ports) if args.ports is not None else tuple(config.model.generators)
    batch = shapes_of_batch(config.model, stage.batch_size, args.length, ports, mesh)
    start = time.time()
    lowered = step.lower(state, frozen, batch)
    traced = time.time()
    print(f"traced in {traced - start:.0f} s; compiling", flush=True)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    total -= memory.alias_size_in_bytes
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    print(
        f"{args.config} {args.stage} on {args.topology} ({devices[0].device_kind}, data {len(devices) // args.fsdp}, "
        f"fsdp {args.fsdp}), {stage.batch_size} rows of {args.length} tokens, {', '.join(ports)}: "
        f"{count / 1e9:.2f}B parameters; a chip holds {total / GIB:.2f} GiB "
        f"(arguments {memory.argument_size_in_bytes / GIB:.2f}, temporaries {memory.temp_size_in_bytes / GIB:.2f}); "
        f"compiled in {time.time() - traced:.0f} s"
    )


if __name__ == "__main__":
    main()
