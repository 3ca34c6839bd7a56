"""ntkit's closed-form kernels against neural-tangents, and against a matrix product alone, side by side in one run.

    python benchmarks/kernels.py [--quick] [--only convnet3 …] [--out benchmarks/results/kernels-cpu.json]

Everything is float32, on JAX's default device, on random smooth images in [0, 1] (their contents do not change what is
computed). The two sides take turns, and medians are compared; beside that stands the comparison of the fastest turns,
which is the one to trust where others use the machine:

- `convnet3`, `myrtle5`, `conv3`, and each `-gradient`: the time per pair of 32×32×3 images, of the NTK or of its
  weighted sum and the gradient of that to the first images. ntkit has 16×16 pairs or more, as in use, and
  neural-tangents, jitted, whichever size of those tried has the smallest median. That both agree is measured too.
- `convnet3-pallas`: the same with the first stage in one Pallas kernel, against ours without it; on a GPU only.
- `fc3`, `fc3-symmetric`: the NTK of 4,000 vectors of 784 with 4,000 others, and with themselves, in times of the
  product X Xᵀ alone.
- `compile`: tracing and compiling myrtle(10) with its gradient, nothing cached.
- `memory`: a Gram matrix of 20,000 vectors in a process of its own, its peak memory beyond the result.

The fraction of the device's peak: operations per second over those of the best large float32 matrix product
(precision "highest"). Operations are counted in the traced program, loops times their trips: one for each element that
is added, multiplied, divided, or has its root, arccos or the like taken, two for each term of a product or convolution;
none for what moves, compares or selects. (XLA's own count takes a loop's body once; without loops the two agree to
about a tenth.) Each side has its own count, and elementwise work cannot reach the peak of a product, which multiplies
and adds at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

import ntkit
from ntkit.architectures import AveragePool
from ntkit.kernels.closed_form import Engine
from ntkit.runs import atomic_write
from ntkit.runs.environment import device, versions

MIB = 2**20
# A turn of a function that takes less is several calls.
TURN_SECONDS = 0.2

Function = Callable[..., Any]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is wanted of a measured value."""

    bar: float
    aim: float
    unit: str
    more_is_better: bool = True

    def said(self, value: float, quick: bool) -> str:
        """Put the value beside what was wanted."""
        bound = "at least" if self.more_is_better else "at most"
        got, bar, aim = (
            f"{v:.0f}{self.unit}" if v >= 100 else f"{v:.3g}{self.unit}" for v in (value, self.bar, self.aim)
        )
        if quick:
            return f"{got} (wanted of the real size: {bound} {bar}, aim {aim})"
        bar_verdict, aim_verdict = ("reached" if self.reached(value, v) else "missed" for v in (self.bar, self.aim))
        return f"{got} ({bound} {bar}: {bar_verdict}; aim {aim}: {aim_verdict})"

    def reached(self, value: float, wanted: float) -> bool:
        """Whether a value is as good as a wanted one."""
        return value >= wanted if self.more_is_better else value <= wanted

    def row(self, value: float) -> Row:
        """Give the goal as JSON values."""
        return {
            "unit": self.unit.strip(),
            "bar": self.bar,
            "aim": self.aim,
            "bar_reached": self.reached(value, self.bar),
            "aim_reached": self.reached(value, self.aim),
        }


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large, how often, and whether at other sizes too. Quick ones are to see that it runs, and mean nothing."""

    quick: bool
    repeats: int
    doubled: bool = True


@dataclasses.dataclass(frozen=True)
class Work:
    """A row of the table.

    **Fields:** `measure`: gives the `"value"` that the goal is about, with all that was measured beside it.
    `needs_gpu`: whether it means anything only there.
    """

    what: str
    goal: Goal
    measure: Callable[[Settings], Row]
    needs_gpu: bool = False


@dataclasses.dataclass(frozen=True)
class Images:
    """A kernel between images of side × side × 3, and whether its gradient is wanted too."""

    architecture: ntkit.Architecture
    gradient: bool
    side: int


# --- Timing


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments and the floating-point operations that it takes."""

    compiled: Function
    arguments: tuple[Any, ...]
    operations: float

    def __call__(self) -> Any:
        return jax.block_until_ready(self.compiled(*self.arguments))


def program(function: Function, *arguments: Any) -> Program:
    """Compile a function for its arguments."""
    arguments = jax.device_put(arguments)
    traced = jax.jit(function).trace(*arguments)
    return Program(traced.lower().compile(), arguments, operations(traced.jaxpr.jaxpr))


def seconds_of(run: Callable[[], object], calls: int = 1) -> float:
    """Give the seconds that one of several calls takes."""
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def in_turns(runs: dict[str, Program], settings: Settings) -> dict[str, list[float]]:
    """Give each run's seconds per call, one value for each of its turns."""
    calls = {}
    for name, run in runs.items():
        seconds_of_one = seconds_of(run)
        if seconds_of_one < TURN_SECONDS:
            # Without what comes with a first call.
            seconds_of_one = seconds_of(run)
        calls[name] = 1 if settings.quick else math.ceil(min(100.0, TURN_SECONDS / seconds_of_one))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(settings.repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, calls[name]))
    return seconds


def summary(run: Program, seconds: list[float], pairs: int, peak: float) -> Row:
    """Give what was measured of one side as JSON values."""
    median = statistics.median(seconds)
    return {
        "seconds_per_pair": median / pairs,
        "least_and_most_seconds_per_pair": [min(seconds) / pairs, max(seconds) / pairs],
        "seconds": seconds,
        "operations_per_pair": run.operations / pairs,
        "fraction_of_peak": run.operations / median / peak,
    }


def compared(side: Row, other: Row) -> Row:
    """Give how often one side's time contains the other's."""
    fastest = side["least_and_most_seconds_per_pair"][0] / other["least_and_most_seconds_per_pair"][0]
    print(f"  the fastest turns compared: {fastest:.3g}×")
    return {"value": side["seconds_per_pair"] / other["seconds_per_pair"], "value_of_the_fastest_turns": fastest}


@functools.cache
def measured_peak(quick: bool) -> float:
    """Give the operations per second of the best of several large matrix products."""
    n = 512 if quick else 2048 if jax.default_backend() == "cpu" else 8192
    x = np.random.default_rng(0).uniform(size=(n, n)).astype(np.float32)
    product = program(lambda a, b: jnp.matmul(a, b, precision="highest"), x, x)
    product()
    peak = product.operations / min(seconds_of(product) for _ in range(10))
    print(f"peak: {peak / 1e9:.4g} GFLOP/s, the best of ten float32 matrix products of size {n}", flush=True)
    return peak


# --- Counting

ELEMENTWISE = re.compile(
    "add|sub|mul|div|neg|max|min|abs|sign|sqrt|rsqrt|square|integer_pow|pow|exp|exp2|log|log1p|expm1|tanh|sin|cos|tan|"
    "asin|acos|atan|atan2|erf|erfc|erf_inv|add_any|clamp|cumsum"
)
REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"})


def operations(jaxpr: core.Jaxpr) -> float:
    """Count the floating-point operations of a program."""
    return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation: core.JaxprEqn) -> float:
    """Count the floating-point operations of one equation, with those of the programs in it."""
    name, params = equation.primitive.name, equation.params
    inside = [operations(jaxpr) for jaxpr in programs_in(params.values())]
    if not equation.outvars or not is_floating(equation.outvars[0]):
        return times(equation) * sum(inside)
    size = elements(equation.outvars[0])
    if ELEMENTWISE.fullmatch(name):
        return size
    if name in REDUCTIONS:
        return elements(equation.invars[0])
    if name == "scatter-add":
        return elements(equation.invars[2])
    if name == "reduce_window_sum":
        return size * math.prod(params["window_dimensions"])
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(shape_of(equation.invars[0])[axis] for axis in contracted)
    if name == "conv_general_dilated":
        outputs = shape_of(equation.invars[1])[params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * elements(equation.invars[1]) / outputs
    if name == "cond":
        return max(inside)
    return times(equation) * sum(inside)


def times(equation: core.JaxprEqn) -> int:
    """Give how often the program in an equation runs; once if only the data decides."""
    if equation.primitive.name == "scan":
        return int(equation.params["length"])
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return 1


def programs_in(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    """Find the programs among an equation's parameters."""
    for value in values:
        if isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, list | tuple):
            yield from programs_in(value)
        elif isinstance(getattr(value, "jaxpr", None), core.Jaxpr):
            yield value.jaxpr  # closed over constants


def shape_of(variable: Any) -> tuple[int, ...]:
    """Give the shape of a variable."""
    return tuple(variable.aval.shape)


def elements(variable: Any) -> int:
    """Give the number of elements of a variable."""
    return math.prod(shape_of(variable))


def is_floating(variable: Any) -> bool:
    """Whether a variable holds floating-point numbers; a token or a reference has no dtype of its own."""
    return jnp.issubdtype(getattr(variable.aval, "dtype", bool), jnp.floating)


# --- Kernels between images


def smooth_images(seed: int, n: int, side: int) -> np.ndarray:
    """Give random images (n, side, side, 3) in [0, 1], most of whose neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(size=(n, side // 4, side // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (0.9 * coarse + 0.1 * rng.uniform(size=coarse.shape)).astype(np.float32)


def image_program(kernel: ntkit.Kernel, work: Images, size: int) -> Program:
    """Compile a work for `size` × `size` pairs."""
    x, y = smooth_images(0, size, work.side), smooth_images(1, size, work.side)
    if work.gradient:
        return program(gradient_of(kernel), x, y, np.ones((size, size), np.float32))
    return program(lambda x, y: kernel(x, y), x, y)


def gradient_of(kernel: ntkit.Kernel) -> Function:
    """Give what distillation takes of a kernel: a weighted sum, and its gradient to the first images."""
    return jax.value_and_grad(lambda x, y, weights: jnp.sum(kernel(x, y) * weights))


def sizes(work: Images, quick: bool) -> tuple[int, tuple[int, ...]]:
    """Give the images on either side for ntkit, and those to try for neural-tangents, which are no more."""
    pooled = any(isinstance(layer, AveragePool) for layer in work.architecture.layers)
    if quick:
        return 2, (2,)
    if jax.default_backend() == "cpu":
        return (16, (4, 6)) if pooled else (64, (32, 64))
    return (64, (16, 32)) if pooled else (256, (128, 256))


def references(work: Images, candidates: tuple[int, ...]) -> dict[int, Program]:
    """Compile neural-tangents for those sizes for which there is memory."""
    kernel = ntkit.ntk(work.architecture, "neural_tangents")
    found = {}
    for size in candidates:
        if expected_bytes(work, kernel, size) <= host_bytes() / 2:
            run = image_program(kernel, work, size)
            if jax.default_backend() == "cpu" or fits(run):
                found[size] = run
    return found


def expected_bytes(work: Images, kernel: ntkit.Kernel, size: int) -> float:
    """Give about what neural-tangents needs of the host: if it runs out of memory, this process ends."""
    if jax.default_backend() != "cpu":
        return 0.0
    # With the gradient what each of a few layers gave is kept.
    # Covariances of all pixels of both images, and what turns one layer's into the next one's.
    return size**2 * 24 * work.side**4 * (4 if work.gradient else 1)


def fits(run: Program) -> bool:
    """Whether an accelerator has the memory for a program."""
    try:
        run()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


def host_bytes() -> int:
    """Give the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disagreement(work: Images, ours: Program, reference: Program, size: int) -> float:
    """Give the largest difference on the first `size` × `size` pairs, relative to the largest value."""
    if work.gradient:
        # That of those pairs alone.
        x, y, weights = ours.arguments
        _, gradient = ours.compiled(x, y, jnp.zeros_like(weights).at[:size, :size].set(1.0))
        got = gradient[:size]
        _, expected = reference.compiled(x[:size], y[:size], weights[:size, :size])
    else:
        x, y = ours.arguments
        got = ours()[:size, :size]
        expected = reference.compiled(x[:size], y[:size])
    return float(jnp.max(jnp.abs(got - expected)) / jnp.max(jnp.abs(expected)))


def image_row(work: Images, settings: Settings) -> Row:
    """Measure a kernel between images."""
    return against_neural_tangents(work, ours_of(work, settings), settings)


def ours_of(work: Images, settings: Settings) -> Program:
    """Compile ntkit's kernel for the size that it is measured at."""
    return image_program(ntkit.ntk(work.architecture, "fused"), work, sizes(work, settings.quick)[0])


def against_neural_tangents(work: Images, ours: Program, settings: Settings) -> Row:
    """Measure a compiled kernel and neural-tangents in turns."""
    size, candidates = sizes(work, settings.quick)
    tried = references(work, candidates)
    if not tried:
        raise RuntimeError("neural-tangents: there is no memory for any of the sizes tried")
    seconds = in_turns({"ntkit": ours} | {str(n): run for n, run in tried.items()}, settings)
    of_tried = {n: statistics.median(seconds[str(n)]) / n**2 for n in tried}
    reference_size = min(of_tried, key=lambda n: of_tried[n])
    reference = tried[reference_size]
    peak = measured_peak(settings.quick)
    side = summary(ours, seconds["ntkit"], size**2, peak)
    reference_side = summary(reference, seconds[str(reference_size)], reference_size**2, peak)
    print(line("ntkit", f"{size}×{size} pairs", side))
    print(line("neural-tangents", f"{reference_size}×{reference_size} pairs", reference_side))
    error = disagreement(work, ours, reference, reference_size)
    print(f"  largest difference between the two: {error:.1e} of the largest value")
    return {
        **compared(reference_side, side),
        "images_on_either_side": {"ntkit": size, "neural-tangents": reference_size},
        "ntkit": side,
        "neural-tangents": reference_side,
        "seconds_per_pair_of_neural-tangents_by_size": of_tried,
        "relative_difference": error,
        **as_n_doubles(size, side, lambda n: image_program(ntkit.ntk(work.architecture, "fused"), work, n), settings),
    }


def as_n_doubles(size: int, side: Row, make: Callable[[int], Program], settings: Settings) -> Row:
    """Measure the time per pair at half the size and at twice the size, where that is wanted."""
    if not settings.doubled:
        return {}
    found = {size: side["seconds_per_pair"]}
    for n in (2 * size,) if settings.quick else (size // 2, 2 * size):
        run = make(n)
        run()
        found[n] = statistics.median(seconds_of(run) for _ in range(3)) / n**2
    found = dict(sorted(found.items()))
    print("  time per pair as n doubles: " + ", ".join(f"n = {n}: {duration(s)}" for n, s in found.items()))
    return {"seconds_per_pair_as_n_doubles": {str(n): s for n, s in found.items()}}


def pallas_row(work: Images, settings: Settings) -> Row:
    """Measure the first stage in one kernel against the one that XLA makes."""
    size = sizes(work, settings.quick)[0]
    ours = {
        name: image_program(ntkit.ntk(work.architecture, pallas=name == "pallas"), work, size)
        for name in ("pallas", "xla")
    }
    seconds = in_turns(ours, settings)
    peak = measured_peak(settings.quick)
    sides = {name: summary(run, seconds[name], size**2, peak) for name, run in ours.items()}
    for name, side in sides.items():
        print(line(name, f"{size}×{size} pairs", side))
    found, expected = (run() for run in ours.values())
    error = float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected)))
    print(f"  largest difference between the two: {error:.1e} of the largest value")
    return {
        **compared(sides["xla"], sides["pallas"]),
        "images_on_either_side": size,
        **sides,
        "relative_difference": error,
    }


def line(name: str, size: str, side: Row) -> str:
    """Say what was measured of one side."""
    least, most = (duration(seconds) for seconds in side["least_and_most_seconds_per_pair"])
    return (
        f"  {name:15s} {size:>20s}  {duration(side['seconds_per_pair']):>8s} a pair ({least} to {most}), "
        f"{side['operations_per_pair']:.3g} operations, {100 * side['fraction_of_peak']:.2g} % of peak"
    )


def duration(seconds: float) -> str:
    """Write seconds in a unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


# --- Kernels between vectors


def vectors(seed: int, n: int) -> np.ndarray:
    """Give random vectors (n, 784) in [0, 1]."""
    return np.random.default_rng(seed).uniform(size=(n, 784)).astype(np.float32)


def vector_program(kernel: ntkit.Kernel, n: int, symmetric: bool) -> Program:
    """Compile a kernel of n vectors with others, or with themselves."""
    if symmetric:
        return program(lambda x: kernel(x), vectors(0, n))
    return program(lambda x, y: kernel(x, y), vectors(0, n), vectors(1, n))


def vectors_of(quick: bool) -> tuple[int, ntkit.Architecture]:
    """Give how many vectors there are, and the network."""
    return (200, ntkit.fc(1)) if quick else (4000, ntkit.fc(3))


def vector_row(symmetric: bool, settings: Settings) -> Row:
    """Measure a kernel between vectors in times of the matrix product, and how far it is from neural-tangents."""
    n, architecture = vectors_of(settings.quick)
    ours = vector_program(ntkit.ntk(architecture, "fused"), n, symmetric)
    row = times_product(ours, symmetric, settings)
    expected = ntkit.ntk(architecture, "neural_tangents")(*(argument[:100] for argument in ours.arguments))
    error = float(jnp.max(jnp.abs(ours()[:100, :100] - expected)) / jnp.max(jnp.abs(expected)))
    print(f"  largest difference from neural-tangents: {error:.1e} of the largest value")
    return {**row, "relative_difference": error}


def times_product(ours: Program, symmetric: bool, settings: Settings) -> Row:
    """Measure a compiled kernel between vectors in times of the matrix product."""
    n, architecture = vectors_of(settings.quick)
    product = program(lambda x: jnp.matmul(x, x.T, precision="highest"), vectors(0, n))
    seconds = in_turns({"ntkit": ours, "product": product}, settings)
    # A symmetric matrix's pairs are counted as those of any other.
    peak = measured_peak(settings.quick)
    side = summary(ours, seconds["ntkit"], n**2, peak)
    product_side = summary(product, seconds["product"], n**2, peak)
    print(line("ntkit", f"n = {n}", side))
    print(line("X Xᵀ", f"n = {n}", product_side))
    kernel = ntkit.ntk(architecture, "fused")
    return {
        **compared(side, product_side),
        "n": n,
        "ntkit": side,
        "product": product_side,
        **as_n_doubles(n, side, lambda n: vector_program(kernel, n, symmetric), settings),
    }


# --- Compilation and memory


def compiled_of(quick: bool) -> tuple[ntkit.Architecture, int]:
    """Give the network that is compiled, and the side of its images."""
    return (ntkit.fc(1), 8) if quick else (ntkit.myrtle(10), 32)


def compile_row(settings: Settings) -> Row:
    """Measure how long tracing and compiling take, of a kernel with its gradient."""
    architecture, side = compiled_of(settings.quick)
    engines: dict[Engine, int] = {"fused": 16 if jax.default_backend() == "cpu" else 64, "neural_tangents": 4}
    seconds: dict[Engine, list[float]] = {engine: [] for engine in engines}
    # Imports, and what XLA starts at its first compilation, are no part of it.
    for engine in engines:
        jax.block_until_ready(ntkit.ntk(ntkit.fc(1), engine)(vectors(0, 2)))
    for _ in range(1 if settings.quick else min(settings.repeats, 3)):
        for engine, size in engines.items():
            seconds[engine].append(seconds_of(compilation(ntkit.ntk(architecture, engine), size, side)))
    medians = {engine: statistics.median(values) for engine, values in seconds.items()}
    for engine, size in engines.items():
        least, most = (duration(end(seconds[engine])) for end in (min, max))
        print(f"  {engine:15s} {f'{size}×{size} pairs':>16s}  {duration(medians[engine]):>8s} ({least} to {most})")
    return {
        "value": medians["neural_tangents"] / medians["fused"],
        "images_on_either_side": engines,
        "seconds": seconds,
    }


def compilation(kernel: ntkit.Kernel, size: int, side: int) -> Callable[[], object]:
    """Give what compiles a kernel with its gradient, as a process does that has compiled nothing yet."""
    weights = np.ones((size, size), np.float32)
    arguments = jax.device_put((smooth_images(0, size, side), smooth_images(1, size, side), weights))
    jax.clear_caches()
    return lambda: jax.jit(gradient_of(kernel)).trace(*arguments).lower().compile()


def gram_of(quick: bool) -> tuple[int, int]:
    """Give how many vectors the Gram matrix is of, and the depth of the network."""
    return (1500, 1) if quick else (20_000, 3)


def memory_row(settings: Settings) -> Row:
    """Measure the memory of a Gram matrix, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(gram_memory, *gram_of(settings.quick)).result()
    print(f"  the result is {found['result_bytes'] / MIB:.0f} MiB, in {duration(found['seconds'])}")
    beyond = {where: found[f"{where}_bytes_beyond_the_result"] for where in ("host", "device")}
    for where, amount in beyond.items():
        if amount is not None:
            print(f"  beyond it on the {where}: {amount / MIB:.0f} MiB")
    return {"value": max(amount or 0 for amount in beyond.values()) / MIB, **found}


def gram_memory(n: int, depth: int) -> Row:
    """Compute a Gram matrix of n vectors, and give the peak memory of this process beyond what it had, and the result.

    The compilation of its blocks is part of that; libraries that a device loads at its first use are not.
    """
    kernel = ntkit.ntk(ntkit.fc(depth))
    x = vectors(0, n)
    ntkit.gram(kernel, x[:10]).block_until_ready()
    before = memory_of_process("VmRSS")
    started = time.perf_counter()
    matrix = ntkit.gram(kernel, x).block_until_ready()
    seconds = time.perf_counter() - started
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    on_device = statistics_of_device.get("peak_bytes_in_use")
    return {
        "n": n,
        "seconds": seconds,
        "result_bytes": matrix.nbytes,
        "host_bytes_beyond_the_result": memory_of_process("VmHWM") - before - matrix.nbytes,
        "device_bytes_beyond_the_result": None if on_device is None else on_device - matrix.nbytes,
    }


def memory_of_process(field: str) -> int:
    """Give a field of what Linux says of this process, in bytes."""
    # Not `getrusage`: there a new process begins with the peak of the one that started it.
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(field + ":"):
            return int(entry.split()[1]) * 1024
    raise ValueError(f"field: got {field!r}, expected one of /proc/self/status")


# --- The table


def image_works(quick: bool) -> dict[str, Images]:
    """Give the kernels between images by the names of their rows."""
    # Most of the time of small ones is the compilers'.
    convnet, myrtle, conv = (
        (ntkit.convnet(1), ntkit.conv(1), ntkit.conv(1))
        if quick
        else (ntkit.convnet(3), ntkit.myrtle(5), ntkit.conv(3))
    )
    side = 8 if quick else 32
    return {
        "convnet3": Images(convnet, False, side),
        "convnet3-gradient": Images(convnet, True, side),
        "myrtle5": Images(myrtle, False, side),
        "myrtle5-gradient": Images(myrtle, True, side),
        "conv3": Images(conv, False, side),
    }


def works(quick: bool) -> dict[str, Work]:
    """Give the rows by name."""
    between_images = image_works(quick)
    convnet = between_images["convnet3"]
    n, fc = vectors_of(quick)
    of_gram, depth_of_gram = gram_of(quick)
    compiled, side = compiled_of(quick)

    def images(name: str, bar: float, aim: float) -> Work:
        work = between_images[name]
        how = "value and gradient to the first images" if work.gradient else "forward"
        what = f"{work.architecture.name} NTK, {work.side}×{work.side}×3, {how}, against neural-tangents"
        return Work(what, Goal(bar, aim, "×"), functools.partial(image_row, work))

    def vectors_work(symmetric: bool, bar: float, aim: float) -> Work:
        what = f"{fc.name} NTK, n = {n:,}, d = 784, {'with itself' if symmetric else 'with others'}, against X Xᵀ alone"
        goal = Goal(bar, aim, "× its time", more_is_better=False)
        return Work(what, goal, functools.partial(vector_row, symmetric))

    return {
        # First: once this process has an accelerator, another one gets little of its memory.
        "memory": Work(
            f"gram of n = {of_gram:,}, fc{depth_of_gram}, d = 784: peak memory beyond the result",
            Goal(1024, 256, " MiB", more_is_better=False),
            memory_row,
        ),
        "convnet3": images("convnet3", 25, 40),
        "convnet3-gradient": images("convnet3-gradient", 15, 30),
        "convnet3-pallas": Work(
            f"{convnet.architecture.name} NTK, the first stage in a Pallas kernel, against the same without",
            Goal(1, 2, "×"),
            functools.partial(pallas_row, convnet),
            needs_gpu=True,
        ),
        "myrtle5": images("myrtle5", 15, 30),
        "myrtle5-gradient": images("myrtle5-gradient", 10, 20),
        "conv3": images("conv3", 2, 5),
        "fc3": vectors_work(False, 2.0, 1.3),
        "fc3-symmetric": vectors_work(True, 2.0, 0.7),
        "compile": Work(
            f"compile time, {compiled.name} with gradient, {side}×{side}×3, against neural-tangents",
            Goal(2, 5, "×"),
            compile_row,
        ),
    }


def main() -> None:
    """Run the comparison, print it and write it."""
    table = {quick: works(quick) for quick in (False, True)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(table[False]), help="rows to measure")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    settings = Settings(options.quick, 2 if options.quick else options.repeats)
    measured: dict[str, Row] = {}
    for name, work in table[options.quick].items():
        if options.only and name not in options.only:
            continue
        print(f"{name}: {work.what}", flush=True)
        if work.needs_gpu and jax.default_backend() != "gpu":
            print("  left out: there is no GPU")
            continue
        row = work.measure(settings)
        measured[name] = {"what": work.what, **row, **work.goal.row(row["value"])}
        print(f"  {work.goal.said(row['value'], options.quick)}", flush=True)
        if options.out:
            write(options.out, measured, settings)
    print("\nall rows" + (", of sizes too small to mean anything" if options.quick else ""))
    for name, row in measured.items():
        print(f"  {name:18s} {table[options.quick][name].goal.said(row['value'], options.quick)}")


def write(path: Path, measured: dict[str, Row], settings: Settings) -> None:
    """Write what has been measured so far."""
    result = {
        "what": "NTKs, float32: ntkit against neural-tangents, and against a matrix product alone",
        "quick": settings.quick,
        "peak_operations_per_second": measured_peak(settings.quick),
        "rows": measured,
        "versions": versions(),
        "device": {**device(), "cores": os.cpu_count()},
    }
    with atomic_write(path, "w") as file:
        file.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
