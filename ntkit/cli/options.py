"""Options that commands share, and what they stand for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import reprlib
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import numpy as np

import ntkit
from ntkit import networks
from ntkit.activations import ACTIVATIONS
from ntkit.architectures import check_image_shape
from ntkit.attacks import APGD, FAB, FGSM, L2, PGD, Attack, AutoAttack, Ball, Linf, Square
from ntkit.cli.ranges import AttackSteps, Depth, Ridge, Scale
from ntkit.data import ZCA, Augmentation, Dataset, Identity, Preprocessing, Standardize, load
from ntkit.networks.training import Module
from ntkit.runs import Interrupted, Run, uninterrupted
from ntkit.runs.interruption import interrupt_in

BALLS = {"linf": Linf, "l2": L2}
RADII = {"linf": 0.1, "l2": 1.0}
OPTIMIZERS = {"sgd": networks.sgd, "adam": networks.adam}
ATTACKS: dict[str, type[Attack]] = {kind.name: kind for kind in (FGSM, PGD, APGD, FAB, Square, AutoAttack)}
# AutoAttack does not run inside of a compiled step.
ADVERSARIES = tuple(name for name in ATTACKS if name != AutoAttack.name)

if TYPE_CHECKING:
    AttackName: TypeAlias = str
    AdversaryName: TypeAlias = str
    AnyAdversaryName: TypeAlias = str
else:
    AttackName = Literal[tuple(ATTACKS)]
    AdversaryName = Literal[ADVERSARIES]
    AnyAdversaryName = Literal[("none", *ADVERSARIES)]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are prepared for the kernel."""

    dataset: str = "digits"
    """Data set: "digits" (scikit-learn's, embedded), your own (an .npz of images and labels, a .csv, or a folder of
    class folders of images, such as ./photos), or the name of a TensorFlow Datasets (TFDS) set."""

    data_dir: Path | None = None
    """Directory that holds TFDS data; by default TFDS_DATA_DIR, else TFDS's own."""

    target: str | None = None
    """Column of a .csv that holds the classes; by default "target"."""

    test_fraction: float | None = None
    """Part of your own data that is kept for the test, where they have no test split; by default 0.2."""

    preprocess: Literal["auto", "none", "standardize", "zca"] = "auto"
    """Preprocessing. "auto": as in the KIP papers, "standardize" for grey images and "zca" for colour; of vectors,
    "standardize"."""

    zca_regularization: Scale = 0.1
    """Regularization of ZCA, relative to the mean eigenvalue of the covariance; at least 0."""


@dataclasses.dataclass(frozen=True)
class KernelOptions:
    """Which kernel, or family of kernels."""

    architecture: Literal["fc", "conv", "convnet", "myrtle"] = "fc"
    """Network whose infinitely wide limit is the kernel."""

    depth: tuple[Depth, ...] = ()
    """Hidden layers; several depths make a family, of which each step samples one. Default by architecture: fc 1,
    conv 3, convnet 3, myrtle 5."""

    kernel: Literal["ntk", "nngp"] = "ntk"
    """Neural tangent kernel, or the covariance of the random network."""

    activation: str = "relu"
    """Nonlinearity: relu, erf, gelu and others with a closed form."""

    W_std: Scale = 2**0.5
    """Standard deviation of the weights, times the square root of the fan-in; at least 0."""

    b_std: Scale = 0.1
    """Standard deviation of the biases; at least 0."""


@dataclasses.dataclass(frozen=True)
class RegressionOptions(KernelOptions):
    """Which kernel, and how its regression is regularized."""

    ridge: Ridge = 1e-6
    """Ridge, relative to the mean of the Gram matrix's diagonal; at least 0."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a result goes, and what its random numbers come from."""

    seed: int = 0
    """Seed of everything random."""

    out: Path | None = None
    """Run directory to make; by default a new one under runs/."""


@dataclasses.dataclass(frozen=True)
class BallOptions:
    """How far an image may be changed."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation: its largest change of a pixel, or its Euclidean length."""

    radius: float | None = None
    """Largest norm of the perturbation, in units of pixels from 0 to 1 whatever the preprocessing; by default 0.1 for
    linf and 1 for l2."""

    @property
    def ball(self) -> Ball:
        """The ball around an image."""
        return BALLS[self.norm](RADII[self.norm] if self.radius is None else self.radius)


@dataclasses.dataclass(frozen=True)
class AdversaryOptions(BallOptions):
    """An adversary of the target batches: adv-KIP."""

    adversary: AnyAdversaryName = "none"
    """Attack each target batch through the predictor of the current support set (adv-KIP)."""

    adversary_steps: AttackSteps | None = None
    """Gradient steps of the adversary; by default 10; fgsm takes one, and square none."""


DEFAULT_DEPTH = {"fc": 1, "conv": 3, "convnet": 3, "myrtle": 5}


def make_architectures(options: KernelOptions) -> list[ntkit.Architecture]:
    """Give the architecture of each depth asked for."""
    if options.activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {options.activation!r}, expected one of {', '.join(sorted(ACTIVATIONS))}")
    build = {"fc": ntkit.fc, "conv": ntkit.conv, "convnet": ntkit.convnet, "myrtle": ntkit.myrtle}[options.architecture]
    depths = options.depth or (DEFAULT_DEPTH[options.architecture],)
    return [build(depth, activation=options.activation, W_std=options.W_std, b_std=options.b_std) for depth in depths]


def make_kernels(options: KernelOptions) -> list[ntkit.Kernel]:
    """Give the kernel of each architecture."""
    make = {"ntk": ntkit.ntk, "nngp": ntkit.nngp}[options.kernel]
    return [make(architecture) for architecture in make_architectures(options)]


def hyper_parameters(kernels: ntkit.Kernel | Sequence[ntkit.Kernel] | None) -> list[list[float]]:
    """Give the hyper-parameters of each kernel of a family, in JSON's types."""
    family = [kernels] if isinstance(kernels, ntkit.Kernel) else kernels or []
    return [[float(leaf) for leaf in jax.tree.leaves(kernel)] for kernel in family]


def with_hyper_parameters(kernels: list[ntkit.Kernel], values: Any) -> list[ntkit.Kernel]:
    """Put what `hyper_parameters` took out, and a file may have changed, into kernels of the same structure.

    **Raises:** `ValueError` if the values do not fit the kernels.
    """
    try:
        numbers = [np.asarray(member, np.float32) for member in values]
        if [(len(jax.tree.leaves(kernel)),) for kernel in kernels] != [member.shape for member in numbers]:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("kernels: got hyper-parameters in the file that do not fit its configuration") from None
    return [
        jax.tree.unflatten(jax.tree.structure(kernel), list(member))
        for kernel, member in zip(kernels, numbers, strict=True)
    ]


def kernel_at_fault(options: object) -> str | None:
    """Say that the kernel is at fault, if its standard deviations are not the usual ones and it overflows or is 0.

    What fails then is whatever is computed of it first, which blames its own arguments.
    """
    if not isinstance(options, KernelOptions) or not isinstance(options, DataOptions):
        return None
    if (options.W_std, options.b_std) == (KernelOptions.W_std, KernelOptions.b_std):
        return None
    try:
        images = prepare(options).train_images[:2]
        grams = [np.asarray(kernel(images)) for kernel in make_kernels(options)]
    except (OSError, ValueError):
        return None
    for gram in grams:
        if not (np.isfinite(gram).all() and gram.any()):
            kernel = f"the kernel of an image with itself is {gram[0, 0]:g}"
            if options.b_std > options.W_std:
                return f"b_std: got {options.b_std:g}, with a W_std of {options.W_std:g}, expected others: {kernel}"
            return f"W_std: got {options.W_std:g}, with a b_std of {options.b_std:g}, expected others: {kernel}"
    return None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set as the kernel sees it."""

    dataset: Dataset
    preprocessing: Preprocessing
    train_images: np.ndarray
    test_images: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def visible(self) -> bool:
        """Whether there is anything to look at: vectors and images of two channels are no pictures."""
        shape = self.dataset.train.images.shape[1:]
        return len(shape) == 3 and shape[-1] in (1, 3)

    def pictures(self, images: np.ndarray) -> np.ndarray:
        """Give images as the kernel sees them as pictures, with values around [0, 1]."""
        return np.asarray(self.preprocessing.inverse(images))


def prepare(options: DataOptions) -> Prepared:
    """Load the data set and fit the preprocessing to its training images.

    **Raises:** `ValueError` that names an option, of those that would not be looked at too.
    """
    dataset = load(options.dataset, options.data_dir, target=options.target, test_fraction=options.test_fraction)
    shape = dataset.train.images.shape[1:]
    kind = options.preprocess
    if kind == "auto":
        kind = "zca" if len(shape) == 3 and shape[-1] > 1 else "standardize"
    if kind != "zca" and options.zca_regularization != DataOptions.zca_regularization:
        raise ValueError(f"zca_regularization: got {options.zca_regularization}, expected --preprocess zca beside it")
    preprocessing: Preprocessing
    if kind == "zca":
        preprocessing = ZCA.fit(dataset.train.images, regularization=options.zca_regularization)
    elif kind == "standardize":
        preprocessing = Standardize.fit(dataset.train.images)
    else:
        preprocessing = Identity()
    return Prepared(
        dataset,
        preprocessing,
        _in_blocks(preprocessing, dataset.train.images),
        _in_blocks(preprocessing, dataset.test.images),
    )


# Networks whose proportions are given, beside those that an architecture gives at any width.
CNNS = {
    each.__name__: each
    for each in (
        networks.simple_cnn,
        networks.standard_convnet,
        networks.alexnet,
        networks.vgg11,
        networks.resnet18,
    )
}
NetworkName: TypeAlias = Literal[
    "fc", "conv", "convnet", "myrtle", "simple_cnn", "standard_convnet", "alexnet", "vgg11", "resnet18"
]


def make_network(
    options: KernelOptions, name: NetworkName, outputs: int, width: int | None, shape: tuple[int, ...]
) -> tuple[str, Module]:
    """Give a finite network, and what it is called: the kernel's own architecture, or another one's default depth.

    **Raises:** `ValueError` if images of the shape are too small for it.
    """
    if name in CNNS:
        return name, CNNS[name](outputs) if width is None else CNNS[name](outputs, width=width)
    changed: dict[str, Any] = {} if name == options.architecture else {"architecture": name, "depth": ()}
    architecture = make_architectures(dataclasses.replace(options, **changed))[0]
    try:
        check_image_shape(architecture, shape)
    except ValueError as error:
        if not getattr(options, "network_architectures", ()):
            raise  # it is the kernel's own
        raise ValueError(f"network_architectures: {str(error).removeprefix('x: ')}") from error
    return architecture.name, architecture.flax(outputs, width)


def make_attack(name: str, ball: Ball, **options: Any) -> Attack:
    """Give the attack of a name. Of the options those that are `None` are not given."""
    given = {option: value for option, value in options.items() if value is not None}
    known = [field.name for field in dataclasses.fields(ATTACKS[name]) if field.name != "ball"]
    for option, value in given.items():
        if option not in known:
            raise ValueError(f"{option}: got {value!r} for {name}, expected one of its options: {', '.join(known)}")
    return ATTACKS[name](ball, **given)


def make_adversary(options: AdversaryOptions) -> Attack | None:
    """Give the adversary that target batches are attacked by."""
    if options.adversary == "none":
        return None
    kind, steps = ATTACKS[options.adversary], options.adversary_steps
    if "steps" not in [field.name for field in dataclasses.fields(kind)]:
        if steps is not None:
            raise ValueError(f"adversary_steps: got {steps!r} for {kind.name}, expected none: it has no steps")
        return kind(options.ball)
    steps = 10 if steps is None else steps
    # A large loss rather than a wrong class: KIP learns from what is wrong already, too.
    return make_attack(kind.name, options.ball, steps=steps, stop_early=False if kind is PGD else None)


def make_augmentation(kind: Literal["none", "flip", "digits", "objects"]) -> Augmentation | None:
    """Give the augmentation of a name."""
    return {
        "none": None,
        "flip": Augmentation(flip=True),
        "digits": Augmentation(rotation=10.0, shift=1),
        "objects": Augmentation.objects(),
    }[kind]


def vacant_run(*parts: object) -> Path:
    """Give the directory runs/part-part-…, or the first of runs/…-2, runs/…-3, … that does not exist."""
    # Of a long path the end.
    name = re.sub(r"[^\w.-]", "-", "-".join(map(str, parts))).lstrip("-.")[-100:]
    candidate, number = Path("runs") / name, 1
    while candidate.exists():
        number += 1
        candidate = Path("runs") / f"{name}-{number}"
    return candidate


@contextlib.contextmanager
def new_run(out: Path, config: Mapping[str, Any]) -> Iterator[Run]:
    """Make the run directory of a command that cannot be resumed; say what is in it if the command is stopped."""
    made: Run | None = None
    try:
        with made_run(out, config) as made:
            yield made
    except FileExistsError:
        if made is None and (out / "config.json").exists():
            raise FileExistsError(f"out: {str(out)!r} already holds a run, expected another directory") from None
        raise
    except BaseException as error:
        if (stopped := interrupt_in(error)) is None:
            raise
        what = "nothing is kept"
        if made is not None and made.path.exists():
            names = {entry.name for entry in made.path.iterdir() if not entry.name.startswith(".")}
            what = f"kept in {made.path}: {', '.join(sorted(names - {'config.json'}))}"
        raise Interrupted(f"{stopped}; {what}", stopped.signal) from None


@contextlib.contextmanager
def made_run(out: Path, config: Mapping[str, Any]) -> Iterator[Run]:
    """Make a run directory, and take it back if the block fails before anything is in it.

    What was left by the same command, killed before it had written anything, is taken for new.
    """
    if not _is_utf8(out):
        raise ValueError(f"out: got {str(out)!r}, expected a name in UTF-8")
    run: Run | None = None
    mine = not os.path.exists(out)
    try:
        with uninterrupted():
            try:
                run = Run.create(out, config)
            except FileExistsError:
                _discard_killed(out, config)
                mine = True
                run = Run.create(out, config)
        yield run
    except BaseException:
        if run is not None:
            with uninterrupted():
                run.discard()
                if not mine:  # an empty directory of the user's
                    out.mkdir(exist_ok=True)
        raise


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _discard_killed(out: Path, config: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Run.resume(out, config).discard()


def make_key(seed: int) -> jax.Array:
    """Give the `jax.random` key of a seed."""
    # JAX takes the lowest 32 bits of a larger one: two seeds would give the same result.
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}, expected at least 0 and below 2**32")
    return jax.random.key(seed)


def as_flag(message: str, options: object) -> str:
    """Rename the argument that begins a library's error message to the option that the user gave it by."""
    match = re.match(r"(\w+): ", message)
    if match is None or not dataclasses.is_dataclass(options):
        return message
    flags = {field.name: f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}
    # What the library calls otherwise than the command line. An architecture calls its input x, and what does not fit
    # is the choice of the two.
    flags |= {"name": "--dataset", "regularization": "--zca-regularization", "x": "--architecture"}
    flags |= {"path": "--out", "ball": "--radius"} | getattr(options, "flags", {})
    return flags.get(match[1], match[1]) + message[len(match[1]) :]


def config_of(options: Any, leave_out: tuple[str, ...]) -> dict[str, Any]:
    """Give the options that decide a result, in JSON's types."""
    config = {name: value for name, value in dataclasses.asdict(options).items() if name not in leave_out}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
    }


def options_from(kind: type[Any], config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Give back the options of a class that `config_of` took apart.

    Others are left out, of another command or another version of ntkit. A configuration comes from a file, which may
    hold anything: each value is checked.

    **Raises:** `ValueError` if a value is not one that the option could have; it names the `source`.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in config:
            continue
        value = config[field.name]
        if not _fits(value, hints[field.name]):
            raise ValueError(
                f"config: got {field.name} = {reprlib.repr(value)}, expected what that option can be, in '{source}'"
            )
        values[field.name] = _from_json(value, hints[field.name])
    return values


def _fits(value: object, hint: Any) -> bool:
    alternatives = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in alternatives
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(item, alternatives[0]) for item in value)
    if alternatives:
        return any(_fits(value, alternative) for alternative in alternatives)
    return type(value) in {float: (float, int), Path: (str,)}.get(hint, (hint,))


def _from_json(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return value


# Images of one call while a data set is preprocessed: whitening needs a second copy of them.
_BLOCK = 5000


def _in_blocks(preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    transform = jax.jit(lambda x: preprocessing.transform(x))
    blocks = [np.asarray(transform(images[i : i + _BLOCK])) for i in range(0, len(images), _BLOCK)]
    return np.concatenate(blocks)
