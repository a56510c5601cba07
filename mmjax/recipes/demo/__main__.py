"""`python -m mmjax.recipes.demo`: see `configs/demo.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmjax.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    about = "Teach a small language model to see."
    parser = argparse.ArgumentParser(prog="mmjax demo", description=about)
    parser.add_argument("--workdir", type=Path, default=Path("demo_out"), help="where everything goes")
    parser.add_argument("--short", action="store_true", help="a few steps on a few pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the training; what is held out stays")
    parser.add_argument(
        "--split", choices=("develop", "final"), default="final", help="held-out colours that are asked about"
    )
    args = parser.parse_args(argv)
    keep_freed_memory()

    # Heavy imports wait until the arguments are known to be right.
    from mmjax.configuration import load_config
    from mmjax.recipes.demo.run import REPORT, SCORES, run_demo
    from mmjax.recipes.demo.weights import WeightsUnavailable

    size = "short" if args.short else "full"
    config = load_config(f"demo:{size}", [f"--config.seed={args.seed}"])
    try:
        run_demo(config, args.workdir, args.split)
    except WeightsUnavailable as error:
        print(f"mmjax demo: {error}", file=sys.stderr)
        return 2
    missing = [name for name in (SCORES, REPORT, "model", "backbone") if not (args.workdir / name).exists()]
    if missing:
        print(f"mmjax demo: {', '.join(missing)} was not written to {args.workdir}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
