"""What starting costs: seconds until `mmjax --help` answers, and seconds and peak memory to load a model.

    python tools/bench_startup.py                  # start-up, and a random model of about 150M parameters
    python tools/bench_startup.py --model DIR      # start-up, and the model there

Every figure comes from processes of their own: the median of several runs after one that is left out, since
it may find the files not yet in the disk cache. The random model is written in both layouts, mmjax's and
transformers'.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP_LIMIT = 1.0  # seconds


def seconds(command: list[str], runs: int) -> float:
    """Median wall-clock seconds of a command, after one run that is not counted."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def load_once(path: str) -> None:
    """Loads a model and prints {"seconds", "peak_mb", "parameters"}; runs in a process of its own."""
    began = time.perf_counter()
    import jax

    import mmjax

    imported = time.perf_counter()
    model = mmjax.from_pretrained(path)
    leaves = jax.block_until_ready(jax.tree.leaves(model.params))
    done = time.perf_counter()
    # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform != "darwin" else 1024**2
    )
    result = {"import": imported - began, "load": done - imported, "peak_mb": peak}
    print(json.dumps(result | {"parameters": sum(leaf.size for leaf in leaves)}))


def write_random_model(folder: Path) -> list[Path]:
    """Writes a random Llama of about 150M parameters in both layouts; returns the two directories."""
    import jax

    import mmjax
    from mmjax.backbones.decoder import DecoderConfig
    from mmjax.model import MultimodalLM, MultimodalLMConfig

    backbone = DecoderConfig(
        vocab_size=32000, width=768, num_layers=14, num_heads=12, num_kv_heads=12, head_dim=64, mlp_width=2048
    )
    config = MultimodalLMConfig(backbone)
    model = mmjax.Model(config, MultimodalLM(config).init(jax.random.key(0)))
    layouts = ("mmjax", "huggingface")
    for layout in layouts:
        model.save_pretrained(folder / layout, format=layout)
    return [folder / layout for layout in layouts]


def measure_load(path: Path, runs: int) -> dict[str, float]:
    """Medians of what `load_once` prints, after one run that is not counted."""
    command = [sys.executable, __file__, "--load-once", str(path)]
    results = []
    for _ in range(runs + 1):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(result[key] for result in results[1:]) for key in results[0]}


def main() -> int:
    """Prints the figures; the exit code is 1 if `mmjax --help` takes longer than HELP_LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="measure loading this one instead of random weights")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, of which the median is shown")
    parser.add_argument("--load-once", metavar="PATH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load_once:
        load_once(args.load_once)
        return 0
    help_seconds = seconds([sys.executable, "-m", "mmjax.cli", "--help"], args.runs)
    verdict = "under" if help_seconds < HELP_LIMIT else "NOT under"
    print(f"mmjax --help          {help_seconds:6.2f} s   ({verdict} the limit of {HELP_LIMIT:g} s)")
    print(f"import mmjax          {seconds([sys.executable, '-c', 'import mmjax'], args.runs):6.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        for path in [args.model] if args.model else write_random_model(Path(folder)):
            found = measure_load(path, args.runs)
            label = path if args.model else f"150M, {path.name} layout"
            print(
                f"load {label}: {found['load']:.2f} s after {found['import']:.2f} s of imports, peak memory "
                f"{found['peak_mb']:.0f} MB for {found['parameters'] * 4 / 2**20:.0f} MB of parameters"
            )
    return 0 if help_seconds < HELP_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
