"""The demo over several seeds: the mean of every score, with the lowest and the highest seed.

    python tools/demo_seeds.py --workdir runs/seeds              # three seeds, about ten minutes each
    python tools/demo_seeds.py --workdir runs/seeds --split develop

A seed whose scores are there already is not run again. Prints a Markdown table and writes seeds.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SCORES = "demo_scores.json"


def run(seed: int, workdir: Path, split: str, short: bool) -> dict:
    """The scores of one seed, from a process of its own, so that none profits from another's programs in memory."""
    folder = workdir / f"seed{seed}"
    if not (folder / SCORES).exists():
        command = [sys.executable, "-m", "mmjax.recipes.demo", "--workdir", str(folder), "--seed", str(seed)]
        subprocess.run([*command, "--split", split, *(["--short"] if short else [])], check=True)
    record = json.loads((folder / SCORES).read_text())
    if record["split"] != split:
        sys.exit(f"{folder} holds scores of the split {record['split']!r}, not {split!r}: use another --workdir")
    return record


def flat(scores: dict) -> dict[tuple[str, str, str, str], float]:
    """(stage, held-out what, metric, field) -> number, for the fields that a reader compares."""
    return {
        (stage, held, metric, field): row[field]
        for stage, tables in scores.items()
        for held, rows in tables.items()
        for metric, row in rows.items()
        for field in ("value", "blind", "constant")
        if field in row
    }


def table(records: list[dict]) -> str:
    """The Markdown table of the means."""
    found = [flat(record["scores"]) for record in records]
    lines = [
        "| after stage | held out | score | mean | lowest | highest | shuffled images | constant answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in found[0]:
        if key[3] != "value":
            continue
        values = [scores[key] for scores in found]
        row = [*key[:3], *(f"{number:.3f}" for number in (statistics.mean(values), min(values), max(values)))]
        for field in ("blind", "constant"):
            beside = [scores[(*key[:3], field)] for scores in found if (*key[:3], field) in scores]
            row.append(f"{statistics.mean(beside):.3f}" if beside else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs what is missing and prints the table; the exit code is 1 if a goal is missed by the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("develop", "final"), default="final")
    parser.add_argument("--short", action="store_true", help="a few steps on a few pictures, to see that it runs")
    args = parser.parse_args()
    records = [run(seed, args.workdir, args.split, args.short) for seed in args.seeds]
    text = table(records)
    goals = []
    for rows in zip(*(record["goals"] for record in records), strict=True):
        mean = statistics.mean(row["value"] for row in rows)
        met = rows[0]["lowest"] <= mean <= rows[0]["highest"]
        goals.append({"goal": rows[0]["goal"], "mean": mean, "met": met})
    seconds = [record["total_seconds"] for record in records]
    (args.workdir / "seeds.json").write_text(
        json.dumps({"seeds": args.seeds, "split": args.split, "seconds": seconds, "goals": goals}, indent=2) + "\n"
    )
    (args.workdir / "seeds.md").write_text(text + "\n")
    print(f"\nMeans over seeds {', '.join(map(str, args.seeds))}, {args.split} pairs:\n\n{text}\n")
    print(f"seconds a run: {', '.join(f'{value:.0f}' for value in seconds)}")
    for goal in goals:
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['mean']:.3f}")
    return 0 if all(goal["met"] for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
