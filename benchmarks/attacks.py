"""PGD with 20 steps, ours against Foolbox's LinfPGD, on kernel predictors and on a small network.

    python benchmarks/attacks.py [--quick] [--data-dir DIR] [--out benchmarks/results/attacks-cpu.json]

Both begin at the same images with the same steps, without random starts, and take all of them, so that they find the
same examples; robust accuracies stand beside the times. "Stopping early" is ntkit's default, which leaves an image
alone once the model is wrong about it. The kernel predictor is a regression on 1,000 real images with the NTK of a
fully-connected network of two hidden layers. Foolbox gets it three times: with the kernel of neural-tangents as people
write it, without jit, and jitted; and with ntkit's kernel, jitted. The network is `conv(2)` of 32 channels. There,
"gradients alone" are as many calls of its jitted gradient as there are steps, and nothing else: what takes all steps
takes these. Median of repeats in turns, all in one process; the first call's time, with compilation, stands beside, and
the seconds of all cores together, which other work on the machine disturbs less.

Without --data-dir the images are scikit-learn's digits, enlarged: the sizes are those of the data sets, the robust
accuracies are not.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkit
from ntkit import attacks
from ntkit.attacks import Linf
from ntkit.attacks.losses import cross_entropy
from ntkit.data import one_hot
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

STEPS = 20
# Seconds of a first call beyond which a second one is enough.
PATIENCE = 60.0
# Of the most that 8 / 255 is to natural images; MNIST is attacked with more, and these kernels fall at less.
RADIUS = {"mnist_t10k": 0.1, "cifar10_jpeg": 4 / 255}
SHAPES = {"mnist_t10k": (28, 28, 1), "cifar10_jpeg": (32, 32, 3)}


def images_of(name: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Give images and labels: of a data set, or of its size."""
    if data_dir is not None:
        split = ntkit.data.load(name, data_dir).train
        return split.images, split.labels
    split = ntkit.data.load("digits").train
    shape = (len(split.images), *SHAPES[name])
    return np.asarray(jax.image.resize(split.images, shape, "linear")).clip(0, 1), split.labels


def by_foolbox(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """Attack as a user of Foolbox does."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=False)
    return attack(foolbox.JAXModel(model, bounds=(0, 1)), x, labels, epsilons=radius)[1]


def by_ntkit(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """The same attack by ntkit."""
    return attacks.PGD(Linf(radius), steps=STEPS, random_start=False, stop_early=False)(model, x, labels)


def stopping_early(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """As ntkit does if it is not told to take all steps."""
    return attacks.PGD(Linf(radius), steps=STEPS, random_start=False)(model, x, labels)


@jax.jit
def gradient(model: Callable[[Any], Any], x: Any, labels: Any) -> Any:
    """Give the gradient of the cross-entropy."""
    return jax.grad(lambda x: jnp.sum(cross_entropy(model(x), labels)))(x)


def gradients_alone(model: Callable[[Any], Any], x: Any, labels: Any, radius: float) -> Any:
    """Take as many gradients as there are steps, and none of the steps."""
    for _ in range(STEPS):
        jax.block_until_ready(gradient(model, x, labels))
    return x


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Give the seconds of one call, until its result is there, those of all cores together, and the result."""
    started, used = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(run())
    return time.perf_counter() - started, time.process_time() - used, found


def compare(sides: dict[str, tuple[Any, Any]], x: Any, labels: Any, radius: float, repeats: int) -> dict[str, Any]:
    """Run each attack on its model, in turns; one that takes very long twice only."""
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    runs = {name: functools.partial(attack, model, x, labels, radius) for name, (attack, model) in sides.items()}
    first = {name: timed(run)[0] for name, run in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    adversarial = {}
    for i in range(repeats):
        for name, run in runs.items():
            if i == 0 or first[name] < PATIENCE:
                *seconds, adversarial[name] = timed(run)
                times[name].append(tuple(seconds))
    ours = statistics.median(wall for wall, _ in times["ntkit"])
    found = {}
    for name in runs:
        seconds = statistics.median(wall for wall, _ in times[name])
        found[name] = {
            "seconds": seconds,
            "cpu_seconds": statistics.median(used for _, used in times[name]),
            "all_seconds": [wall for wall, _ in times[name]],
            "first_call_seconds": first[name],
            "times_ntkit": seconds / ours,
            "accuracy": ntkit.data.accuracy(sides["ntkit"][1], adversarial[name], labels),
        }
    return found


ARCHITECTURE = ntkit.fc(2)


def predictor(name: str, data_dir: Path | None, support: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Give a kernel predictor, and images to attack with their labels."""
    images, labels = images_of(name, data_dir)
    targets = one_hot(labels[:support], 10)
    ours = ntkit.regression.fit(ntkit.ntk(ARCHITECTURE), images[:support], targets, 1e-3)
    return ours, images[support:], labels[support:]


def predictors(name: str, data_dir: Path | None, support: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Give each side with the kernel predictor that it is handed, and images to attack with their labels."""
    ours, images, labels = predictor(name, data_dir, support)
    _, _, kernel_fn = ARCHITECTURE.stax(num_outputs=10, width=1)
    held = ours.support

    def today(x: Any) -> Any:
        return kernel_fn(x, held, "ntk") @ ours.weights

    sides = {
        "ntkit": (by_ntkit, ours),
        "ntkit, stopping early": (stopping_early, ours),
        "Foolbox, neural-tangents jitted": (by_foolbox, jax.jit(today)),
        "Foolbox, ntkit's kernel jitted": (by_foolbox, jax.jit(ours)),
        "Foolbox, neural-tangents without jit": (by_foolbox, today),
    }
    return sides, images, labels


def network(name: str, data_dir: Path | None, steps: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Give each side with a trained convolutional network, and images to attack with their labels."""
    images, labels = images_of(name, data_dir)
    held = min(5000, len(images) // 2)
    module = ntkit.conv(2, parameterization="standard").flax(num_outputs=10, width=32)
    options = {"steps": steps, "batch_size": 64, "loss": "cross_entropy"}
    targets = one_hot(labels[:held], 10)
    trained = ntkit.networks.train(module, images[:held], targets, key=jax.random.key(0), **options)
    sides = {
        "ntkit": (by_ntkit, trained),
        "ntkit, stopping early": (stopping_early, trained),
        "Foolbox": (by_foolbox, jax.jit(trained)),
        "gradients alone": (gradients_alone, trained),
    }
    return sides, images[held:], labels[held:]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--data-dir", type=Path, help="where TFDS has mnist_t10k and cifar10_jpeg")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    support, counts, repeats = (100, (16,), 1) if options.quick else (1000, (64, 256), options.repeats)
    rows = []
    for name, radius in RADIUS.items():
        kernels, x, labels = predictors(name, options.data_dir, support)
        nets, net_x, net_labels = network(name, options.data_dir, 10 if options.quick else 500)
        for count in counts:
            for what, sides, images, truth in (
                ("kernel predictor", kernels, x, labels),
                ("network", nets, net_x, net_labels),
            ):
                found = compare(sides, images[:count], truth[:count], radius, repeats)
                rows.append({"model": what, "data": name, "images": count, "radius": radius, "sides": found})
                print(f"{what}, {name}, {count} images, l∞ {radius:.3f}", flush=True)
                for side, values in found.items():
                    print(
                        f"  {side:38s} {1e3 * values['seconds']:9.1f} ms  {values['times_ntkit']:6.1f}×   "
                        f"of all cores {1e3 * values['cpu_seconds']:9.1f} ms   "
                        f"first call {values['first_call_seconds']:5.1f} s   accuracy {values['accuracy']:.1%}"
                    )
    if options.out is not None:
        settings = {"steps": STEPS, "support": support, "repeats": repeats, "data_dir": options.data_dir is not None}
        text = json.dumps({"rows": rows, **settings, "device": device(), "versions": versions()}, indent=2)
        with atomic_write(options.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
