"""Speed on a CPU beside transformers: decode, prefill and train step of the same random LLaVA.

Also one plain matrix product, jax's beside torch's, since that is what prefill and training are made of.

    JAX_PLATFORMS=cpu python tools/bench_cpu.py             # about 150M parameters, two threads
    JAX_PLATFORMS=cpu python tools/bench_cpu.py --small     # a few seconds, to see that it runs

Both libraries have the same weights in float32 and the same threads, and take turns within one run; what is
printed is the ratio of their times in each turn (median, lowest and highest), since a shared machine's
absolute times say little. Above 1 means that mmjax is faster.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import LlavaConfig, LlavaForConditionalGeneration  # noqa: E402

import mmjax  # noqa: E402
from mmjax.distributed.mesh import MeshConfig, make_mesh  # noqa: E402
from mmjax.distributed.rules import shardings  # noqa: E402
from mmjax.paths import flatten  # noqa: E402
from mmjax.train.optimizer import make_optimizer  # noqa: E402
from mmjax.train.stage import StageConfig, multipliers, split  # noqa: E402
from mmjax.train.step import init_state, make_train_step, state_shardings  # noqa: E402


def random_llava(small: bool) -> LlavaForConditionalGeneration:
    """A LLaVA of about 150M parameters with random weights: 196 image tokens, 12 query and 4 key heads."""
    width, layers, vocab = (64, 2, 500) if small else (768, 12, 32000)
    vision = dict(hidden_size=width // 2, intermediate_size=width * 2, num_hidden_layers=max(layers // 2, 1),
                  num_attention_heads=4, image_size=224, patch_size=16, model_type="clip_vision_model")  # fmt: skip
    text = dict(vocab_size=vocab, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
                num_attention_heads=width // 64 or 1, num_key_value_heads=width // 192 or 1, model_type="llama",
                max_position_embeddings=2048)  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocab - 1)
    return LlavaForConditionalGeneration(config).eval()


def example(model: LlavaForConditionalGeneration, rows: int, words: int) -> dict[str, np.ndarray]:
    """`rows` prompts of one image and `words` tokens, channels first as transformers wants them."""
    rng = np.random.default_rng(0)
    image = model.config.image_token_index
    ids = np.concatenate([np.full((rows, 196), image), rng.integers(5, image, (rows, words))], axis=1)
    pixels = rng.normal(size=(rows, 3, 224, 224)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}


def turns(ours: Callable[[], None], theirs: Callable[[], None], count: int) -> list[tuple[float, float]]:
    """Seconds of both, one after the other, `count` times after one round that does not count."""
    taken = []
    for turn in range(count + 1):
        pair = []
        for run in (ours, theirs):
            began = time.perf_counter()
            run()
            pair.append(time.perf_counter() - began)
        if turn:
            taken.append((pair[0], pair[1]))
    return taken


def report(name: str, taken: list[tuple[float, float]], less: list[tuple[float, float]] | None = None) -> None:
    """Prints the ratio theirs / ours; `less` is taken off first (a prefill, to leave the decoding)."""
    if less is not None:
        ours, theirs = (statistics.median(pair[i] for pair in less) for i in range(2))
        taken = [(a - ours, b - theirs) for a, b in taken]
    ratios = sorted(theirs / ours for ours, theirs in taken)
    ours, theirs = (statistics.median(pair[i] for pair in taken) for i in range(2))
    middle = statistics.median(ratios)
    print(
        f"{name:<12} {middle:5.2f} x   ({ratios[0]:.2f} to {ratios[-1]:.2f});   mmjax {ours:.2f} s, "
        f"transformers {theirs:.2f} s",
        flush=True,
    )


def bench_product(rows: int, count: int) -> None:
    """One product of the size that most of the time goes to: what either library's compiler makes of it alone."""
    x, kernel = (np.random.default_rng(0).normal(size=size).astype(np.float32) for size in ((rows, 768), (768, 2048)))
    ours, theirs = jax.jit(jax.numpy.matmul), torch.nn.functional.linear
    a, b, c, d = jax.numpy.asarray(x), jax.numpy.asarray(kernel), torch.tensor(x), torch.tensor(kernel.T.copy())
    many = range(20)
    report(
        "product",
        turns(lambda: [ours(a, b).block_until_ready() for _ in many], lambda: [theirs(c, d) for _ in many], count),
    )


def bench_generate(reference, model, rows: int, words: int, new: int, count: int) -> None:
    """Prefill with one new token, then decoding as the rest of `new` tokens."""
    x = example(reference, rows, words)
    tensors = {name: torch.tensor(array) for name, array in x.items()}

    def theirs(tokens: int) -> None:
        with torch.no_grad():
            reference.generate(
                **tensors, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
            )

    def ours(tokens: int) -> None:
        model.generate(**x, max_new_tokens=tokens, eos_token_id=())

    first = turns(lambda: ours(1), lambda: theirs(1), count)
    report("prefill", first)
    report("decode", turns(lambda: ours(new), lambda: theirs(new), count), first)


def bench_train(reference, model, rows: int, words: int, count: int) -> None:
    """A whole AdamW step of every parameter, gradient clipping included."""
    x = example(reference, rows, words)
    labels = np.where(x["input_ids"] == reference.config.image_token_index, -100, x["input_ids"])
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-5)
    tensors = {name: torch.tensor(array) for name, array in (x | {"labels": labels}).items()}

    def theirs() -> None:
        optimizer.zero_grad()
        reference(**tensors).loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()

    stage = StageConfig("all", 100, rows, ((".*", "train"),), learning_rate=1e-5, schedule="constant")
    axes = flatten(model.module.param_axes())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    trainable, frozen = split(model.params, stage)
    ours_optimizer = make_optimizer(stage, multipliers(model.params, stage), axes)
    places = state_shardings(trainable, ours_optimizer, shardings(axes, mesh))
    step = make_train_step(model.module, stage, ours_optimizer, mesh, places)
    state = [init_state(trainable, ours_optimizer, places)]
    batch = model.batch(**x, labels=labels)

    def ours() -> None:
        state[0], metrics = step(state[0], frozen, batch)
        metrics["loss"].block_until_ready()

    report("train step", turns(ours, theirs, count))


def main() -> int:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each measurement that count")
    parser.add_argument("--rows", type=int, default=8, help="batch size")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    reference = random_llava(args.small)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        began = time.perf_counter()
        model = mmjax.from_pretrained(folder)
        jax.block_until_ready(model.params)
        loaded = time.perf_counter() - began
    count = sum(p.numel() for p in reference.parameters()) / 1e6
    print(f"{count:.0f}M parameters, float32, {THREADS} threads, batch {args.rows}; loaded in {loaded:.1f} s")
    words, new = (8, 8) if args.small else (32, 64)
    bench_product(args.rows * (196 + words), max(args.rounds, 5))
    bench_generate(reference, model, args.rows, words, new, args.rounds)
    bench_train(reference, model, args.rows, words, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
