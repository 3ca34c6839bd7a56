"""What `gpu.py` measures: each part in a process of its own, which gives its numbers as it has them.

ntkit comes first and neural-tangents after it, so that the peak memory is ntkit's, and what neural-tangents takes too
long for, or has no memory for, is lost alone.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attacks
import empirical
import jax
import jax.numpy as jnp
import kernels
import kip
from kernels import Row, Settings, duration, seconds_of
from parts import report, wait

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.data import one_hot
from ntkit.networks import simple_cnn
from ntkit.runs.environment import device, versions

Measure = Callable[[Settings], Iterator[Row]]
GIB = 2**30
# Seconds of a first call beyond which a second one is enough.
PATIENCE = 15.0
# The rows of empirical.py for which there is time: its rivals take long to compile.
EMPIRICAL = ("fc(3), width 512, 28×28", "simple_cnn, 32×32×3")


def memory() -> Row:
    """Give the most memory that this process has had so far."""
    of_device = jax.devices()[0].memory_stats() or {}
    return {
        "peak_device_bytes": of_device.get("peak_bytes_in_use"),
        "peak_host_bytes": kernels.memory_of_process("VmHWM"),
    }


def with_rival(numbers: Row, measure: Callable[[], Row]) -> Row:
    """Add numbers that need neural-tangents; where that is not there, say so."""
    try:
        return numbers | measure()
    except ImportError as error:
        print(f"  {error}")
        return numbers | {"neural-tangents": str(error)}


def peak(settings: Settings) -> Iterator[Row]:
    """Measure what the device can do: products in float32, and reading and writing its memory."""
    found: Row = {"device": device(), "versions": versions()}
    found["operations_per_second"] = kernels.measured_peak(settings.quick)
    yield found
    x = jnp.ones(2**20 if settings.quick else 2**28, jnp.float32)
    copy = kernels.program(lambda x: x + 1, x)
    copy()
    found["bytes_per_second"] = 2 * x.nbytes / min(seconds_of(copy) for _ in range(10))
    print(f"  memory: {found['bytes_per_second'] / 1e9:.4g} GB/s, read and written")
    yield found


def pair(name: str, settings: Settings) -> Iterator[Row]:
    """Measure a pair of images: by itself, then in turns with neural-tangents."""
    work = kernels.image_works(settings.quick)[name]
    compiling: list[kernels.Program] = []
    seconds = seconds_of(lambda: compiling.append(kernels.ours_of(work, settings)))
    (ours,) = compiling
    ours()
    alone = {"compile_seconds": seconds, **memory()}
    size = kernels.sizes(work, settings.quick)[0]
    timed = kernels.in_turns({"ntkit": ours}, settings)["ntkit"]
    side = kernels.summary(ours, timed, size**2, kernels.measured_peak(settings.quick))
    print(kernels.line("ntkit", f"{size}×{size} pairs", side))
    yield {"ntkit": side, **alone}
    yield with_rival({"ntkit": side, **alone}, lambda: kernels.against_neural_tangents(work, ours, settings))


def pallas(settings: Settings) -> Iterator[Row]:
    """Measure the first stage in one Pallas kernel against the one that XLA makes."""
    work = kernels.image_works(settings.quick)["convnet3"]
    size = kernels.sizes(work, settings.quick)[0]
    kernels.image_program(ntkit.ntk(work.architecture, pallas=True), work, size)()
    found = memory()
    yield found | kernels.pallas_row(work, settings)


def vectors(symmetric: bool, settings: Settings) -> Iterator[Row]:
    """Measure a kernel between vectors: in times of the matrix product, then beside neural-tangents."""
    n, architecture = kernels.vectors_of(settings.quick)
    ours = kernels.vector_program(ntkit.ntk(architecture, "fused"), n, symmetric)
    ours()
    found = memory()
    found |= kernels.times_product(ours, symmetric, settings)
    yield found

    def rival() -> Row:
        theirs = kernels.vector_program(ntkit.ntk(architecture, "neural_tangents"), n, symmetric)
        timed = kernels.in_turns({"neural-tangents": theirs}, settings)["neural-tangents"]
        side = kernels.summary(theirs, timed, n**2, kernels.measured_peak(settings.quick))
        print(kernels.line("neural-tangents", f"n = {n}", side))
        return {"neural-tangents": side}

    yield with_rival(found, rival)


def gram(architecture: ntkit.Architecture, n: int, side: int, settings: Settings) -> Iterator[Row]:
    """Measure the Gram matrix of n images with themselves."""
    kernel = ntkit.ntk(architecture)
    x = jnp.asarray(kernels.smooth_images(0, n, side))

    def run() -> None:
        ntkit.gram(kernel, x).block_until_ready()

    first = seconds_of(run)
    found = {"n": n, "first_call_seconds": first, "result_bytes": 4 * n * n, **memory()}
    print(f"  first call {duration(first)}")
    yield found
    seconds = [seconds_of(run) for _ in range(1 if first > PATIENCE else settings.repeats)]
    median = statistics.median(seconds)
    print(f"  {n} images: {duration(median)}")
    yield found | {"seconds": median, "all_seconds": seconds, "seconds_per_pair": median / (n * (n + 1) / 2)}


def kip_step(
    architecture: ntkit.Architecture, n: int, support: int, batch: int, few: int, many: int, settings: Settings
) -> Iterator[Row]:
    """Measure a step of KIP, and for the network of `kip.py` today's loop too."""
    images, labels = kip.problem(n)
    ours = kip.our_loop(images, labels, support, batch, architecture)
    found: Row = {"first_call_seconds": seconds_of(lambda: ours(few)), **memory()}
    yield found
    seconds: list[float] = []
    for _ in range(settings.repeats):
        seconds.append(kip.per_step(ours, few, many))
        found |= {"seconds_per_step": statistics.median(seconds), "all_seconds_per_step": seconds}
        yield found
    print(f"  {support} images, batches of {batch} of {n}: {duration(found['seconds_per_step'])} a step")
    if architecture != kip.ARCHITECTURE:
        return

    def rival() -> Row:
        todays = kip.todays_loop(images, labels, support, batch)
        todays(few)
        seconds = statistics.median(kip.per_step(todays, few, 6 * few) for _ in range(settings.repeats))
        print(f"  today's loop, with neural-tangents: {duration(seconds)} a step")
        return {"neural-tangents": {"seconds_per_step": seconds}, "value": seconds / found["seconds_per_step"]}

    yield with_rival(found, rival)


def pgd(support: int, count: int, settings: Settings) -> Iterator[Row]:
    """Measure PGD with 20 steps on a kernel predictor."""
    data = "cifar10_jpeg"
    model, x, labels = attacks.predictor(data, None, support)
    x, labels, radius = x[:count], labels[:count], attacks.RADIUS[data]
    first = seconds_of(lambda: jax.block_until_ready(attacks.by_ntkit(model, x, labels, radius)))
    found: Row = {"images": count, "support": support, "first_call_seconds": first, **memory()}
    yield found
    sides = {
        "ntkit": (attacks.by_ntkit, model),
        "gradients alone": (attacks.gradients_alone, model),
    }
    found["sides"] = attacks.compare(sides, x, labels, radius, settings.repeats)
    for name, values in found["sides"].items():
        print(f"  {name:24s} {duration(values['seconds'])}, accuracy {values['accuracy']:.1%}")
    yield found


def empirical_kernels(settings: Settings) -> Iterator[Row]:
    """Measure tangent kernels of finite networks: all of ours, then those of neural-tangents."""
    cases = empirical.cases(settings.quick)
    if not settings.quick:
        cases = {name: cases[name] for name in EMPIRICAL}
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 16 * GIB) / 2 / GIB
    networks = {name: (module, *empirical.problem(module, *rest)) for name, (module, *rest) in cases.items()}
    found: Row = {"networks": {name: {} for name in networks}}
    for rivals in ((), empirical.RIVALS if nt.is_installed() else ()):
        for name, (module, x, variables) in networks.items():
            sides = empirical.kernels(module, True, rivals)
            measured = empirical.compare(sides, variables, x, settings.repeats, limit)
            for side in rivals or (empirical.OURS,):
                found["networks"][name][side] = measured[side]
                seconds = measured[side].get("seconds")
                said = measured[side].get("error") if seconds is None else duration(seconds)
                print(f"  {name:32s} {side:24s} {said}", flush=True)
            if not rivals:
                found |= memory()
            yield found


def training(
    modules: dict[str, Callable[[], Any]], n: int, batch: int, few: int, many: int, settings: Settings
) -> Iterator[Row]:
    """Measure a step of training a network."""
    images, labels = kip.problem(n)
    targets = one_hot(labels, kip.CLASSES)
    found: Row = {"batch": batch, "networks": {}}
    for name, make in modules.items():
        module = make()

        def run(steps: int, module: Any = module) -> None:
            session = ntkit.runs.Session(log_every=steps)
            options = {"steps": steps, "batch_size": batch, "optimizer": ntkit.networks.adam(), "session": session}
            network = ntkit.networks.train(module, images, targets, key=jax.random.key(0), **options)
            jax.block_until_ready(network.variables)

        first = seconds_of(lambda: run(few))
        run(many)
        seconds = statistics.median(kip.per_step(run, few, many) for _ in range(settings.repeats))
        operations = operations_of_training(module, images[:batch], targets[:batch])
        fraction = operations / seconds / kernels.measured_peak(settings.quick)
        print(f"  {name}: {duration(seconds)} a step of {batch} images, {100 * fraction:.2g} % of peak")
        found["networks"][name] = {
            "seconds_per_step": seconds,
            "first_call_seconds": first,
            "operations_per_step": operations,
            "fraction_of_peak": fraction,
        }
        yield found | memory()


def operations_of_training(module: Any, images: Any, targets: Any) -> float:
    """Count the operations of a loss with its gradient."""
    variables = jax.eval_shape(module.init, jax.random.key(0), images[:1])

    def loss(variables: Any) -> Any:
        return jnp.mean((module.apply(variables, images) - targets) ** 2)

    return kernels.operations(jax.make_jaxpr(jax.value_and_grad(loss))(variables).jaxpr)


def measures(quick: bool) -> dict[str, Measure]:
    """Give the parts by name, small or as they are wanted."""
    p = functools.partial
    pairs: dict[str, Measure] = {name: p(pair, name) for name in kernels.image_works(quick)}
    if quick:
        sized: dict[str, Measure] = {
            "gram-fc3": p(gram, ntkit.fc(1), 200, 8),
            "gram-convnet3": p(gram, ntkit.convnet(1), 10, 8),
            "kip-fc1": p(kip_step, kip.ARCHITECTURE, 200, 10, 50, 20, 220),
            "kip-convnet3": p(kip_step, ntkit.convnet(1), 100, 10, 10, 1, 2),
            "pgd20": p(pgd, 50, 8),
            "training": p(training, {"simple_cnn": p(simple_cnn, 10, width=4)}, 64, 8, 10, 60),
        }
    else:
        networks = {"simple_cnn": p(simple_cnn, 10), "convnet(3), width 128": p(ntkit.convnet(3).flax, 10, 128)}
        sized = {
            "gram-fc3": p(gram, ntkit.fc(3), 10_000, 32),
            "gram-convnet3": p(gram, ntkit.convnet(3), 1_000, 32),
            "kip-fc1": p(kip_step, kip.ARCHITECTURE, 50_000, 100, 5000, 10, 1010),
            "kip-convnet3": p(kip_step, ntkit.convnet(3), 5_000, 100, 500, 1, 4),
            "pgd20": p(pgd, 1000, 256),
            "training": p(training, networks, 5_000, 128, 20, 220),
        }
    return {
        "peak": peak,
        **pairs,
        "convnet3-pallas": pallas,
        "fc3": p(vectors, False),
        "fc3-symmetric": p(vectors, True),
        **sized,
        "empirical": empirical_kernels,
    }


def main() -> None:
    """Measure one part, `NAME real` or `NAME small`, and report its numbers as they come."""
    name, size = sys.argv[1:]
    # All is imported, and nothing has touched the device.
    wait()
    if size == "real" and jax.default_backend() == "cpu":
        sys.exit("JAX finds no GPU here")
    settings = Settings(quick=size == "small", repeats=2 if size == "small" else 3, doubled=False)
    for numbers in measures(settings.quick)[name](settings):
        report({"device_kind": jax.devices()[0].device_kind, **numbers})


if __name__ == "__main__":
    main()
