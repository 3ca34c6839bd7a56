"""adv-KIP's table: networks trained on a robust set, on a clean one, on the data, and adversarially; under attack.

    python benchmarks/advkip_table.py [--rows digits mnist_t10k] [--data-dir DIR] [--seeds 0 1] [--out FILE]

The published table (Tsilivis, Su, Kempe 2022, arXiv:2207.11727) has a simple CNN, AlexNet and VGG11 on CIFAR-10 at
8/255, clean and under PGD-20: that is the row `cifar10`, for a GPU. The others are reduced, for two CPU cores: smaller
images, sets and networks, fewer steps, and a radius that tells the columns apart; what each has is in ROWS and in the
result. AutoAttack stands beside PGD-20 everywhere, since the authors themselves found that other attacks fool their
models.

Each row is the command `ntkit distill --adversary pgd` as a user types it, with its run directory below --runs, so that
an interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

# Of a row that says nothing else.
NETWORKS = ("simple_cnn", "alexnet", "vgg11")
# Of Adam on the networks, in steps, and of the data, in images; the rest are options of `ntkit distill`.
ROWS: dict[str, dict[str, Any]] = {
    "digits": {
        "dataset": "digits",
        "radius": 0.1,
        "per-class": 10,
        "steps": 300,
        "learning-rate": 0.02,
        "target-batch": 400,
        "network-width": 16,
        "network-steps": 1000,
        "attacked-images": 100,
    },
    "mnist_t10k": {
        "dataset": "mnist_t10k",
        "radius": 0.1,
        "per-class": 10,
        "steps": 300,
        "learning-rate": 0.02,
        "target-batch": 500,
        "network-width": 16,
        "network-steps": 1000,
        "attacked-images": 50,
        "full-set-limit": 2000,
        "network-architectures": ("simple_cnn", "alexnet"),
    },
    "cifar10": {
        "dataset": "cifar10",
        "radius": 8 / 255,
        "depth": 3,
        "per-class": 500,
        "steps": 3000,
        "learning-rate": 0.01,
        "schedule": "cosine",
        "target-batch": 5000,
        "support-batch": 2000,
        "preprocess": "standardize",
        "augment": "flip",
        "network-steps": 10_000,
        "attacked-images": 1000,
        "full-set-limit": 50_000,
    },
}
QUICK = {"per-class": 1, "steps": 3, "network-steps": 3, "attacked-images": 5, "adversary-steps": 2, "network-width": 4}


def published(path: Path | None) -> dict[str, list[float]]:
    """Give the published percentages by network; empty without the file."""
    if path is None:
        return {}
    return {row[0].replace(" ", "_").lower(): row[1:] for row in json.loads(path.read_text())["advkip_cifar10"]["rows"]}


def distil(name: str, settings: dict[str, Any], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run the command, or go on with it; give the rows of its table and its seconds."""
    path = options.runs / f"{name}{'-quick' if options.quick else ''}-seed{seed}"
    finished = path / "seconds.json"
    if not finished.exists():
        networks = settings.get("network-architectures", NETWORKS)
        networks = networks[:1] if options.quick else networks
        given = {f"--{option}": str(value) for option, value in settings.items() if option != "network-architectures"}
        given |= {"--seed": str(seed)}
        if options.data_dir is not None and settings["dataset"] != "digits":
            given["--data-dir"] = str(options.data_dir)
        words = [word for pair in given.items() for word in pair]
        where = ["--resume" if path.exists() else "--out", str(path)]
        command = ["distill", "--adversary", "pgd", *words, "--network-architectures", *networks, *where]
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "from ntkit.cli import main; main()", *command], check=True)
        with atomic_write(finished, "w") as file:
            file.write(json.dumps(time.monotonic() - started) + "\n")
    rows = json.loads((path / "results.json").read_text())["robustness"]
    return {"seed": seed, "rows": rows, "seconds": json.loads(finished.read_text())}


# As in the command's table.
COLUMNS = {"clean": "clean", "pgd": "PGD-20", "autoattack": "AutoAttack"}


def summary(of_seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give means and standard deviations over seeds, in percent."""
    found = []
    for rows in zip(*(one["rows"] for one in of_seeds), strict=True):
        entry: dict[str, Any] = {"model": rows[0]["model"], "trained_on": rows[0]["trained on"]}
        for column, title in COLUMNS.items():
            values = [100 * row[title] for row in rows]
            entry[column] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
        found.append(entry | {"masked": any(row["masked gradients"] for row in rows), "seeds": len(rows)})
    return found


def main() -> None:
    """Run the rows asked for, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=["digits", "mnist_t10k"], help="default: reduced ones"
    )
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the distillation (default 0 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/advkip_table"), help="where the run directories go")
    parser.add_argument("--published", type=Path, help="JSON with the published numbers")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    said = published(options.published)
    # Rows that are not asked for stay in the file.
    results = json.loads(options.out.read_text())["results"] if options.out and options.out.exists() else {}
    for name in options.rows:
        settings = ROWS[name] | (QUICK if options.quick else {})
        of_seeds = [distil(name, settings, options, seed) for seed in options.seeds]
        rows = summary(of_seeds)
        results[name] = {"settings": settings, "rows": rows, "by_seed": of_seeds}
        print(f"\n{name}, l∞ {settings['radius']:.3g}, {len(of_seeds)} seeds, %")
        print(f"{'model':18s} {'trained on':34s} {'clean':>13s} {'PGD-20':>13s} {'AutoAttack':>13s}")
        for row in rows:
            columns = [f"{row[of]['mean']:6.1f} ± {row[of]['std']:4.1f}" for of in COLUMNS]
            masked = "  masked gradients" if row["masked"] else ""
            print(f"{row['model']:18s} {row['trained_on']:34s} {' '.join(columns)}{masked}", flush=True)
        if options.out is not None:
            result = {
                "what": "accuracies under attack of adv-KIP, KIP and adversarial training",
                "results": results,
                "published_cifar10": said,
                "device": {**device(), "cores": os.cpu_count()},
                "versions": versions(),
            }
            with atomic_write(options.out, "w") as file:
                file.write(json.dumps(result, indent=2) + "\n")
    for network, (clean, pgd, trained_clean, trained_pgd) in said.items():
        print(
            f"published, CIFAR-10, l∞ 8/255, {network}: adv-KIP {clean} clean, {pgd} PGD-20; "
            f"adversarial training {trained_clean} clean, {trained_pgd} PGD-20"
        )


if __name__ == "__main__":
    main()
