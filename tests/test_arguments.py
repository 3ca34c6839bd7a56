"""Every argument of every public function, replaced by what it cannot be: one error, one line, and it names one."""

import functools
import inspect
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntkit
from ntkit import attacks, data, distill, features, kernels, networks, plot, regression, runs, solvers
from ntkit.attacks.problem import Problem

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.uniform(size=(6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1])
Y = np.asarray(data.one_hot(LABELS, 2))
PICTURES = RNG.uniform(size=(4, 4, 4, 1)).astype(np.float32)
GRAM = np.eye(6) + 0.1
ARCHITECTURE = ntkit.fc(1, width=4)
KERNEL = ntkit.ntk(ARCHITECTURE)
PREDICTOR = regression.fit(KERNEL, X, Y, 1e-2)
FEATURES = features.eigenfeatures(KERNEL, X, Y)
BALL = attacks.Linf(0.1)
ADVERSARY = attacks.Adversary("fgsm", BALL)
PREPROCESSING = data.Standardize.fit(X)
MODULE = ARCHITECTURE.flax(2)
NETWORK = networks.initialize(MODULE, X, key=KEY)
EMPIRICAL = ntkit.empirical_ntk(MODULE.apply, NETWORK.variables)
DYNAMICS = networks.Dynamics((0, 1, 2), np.stack([GRAM, GRAM + np.eye(6), 2 * GRAM + np.diag(np.arange(6))]))
DISTILLED = distill.Distilled(X, Y)
SPLIT = data.Split(PICTURES, np.array([0, 1, 0, 1]))
RECORDS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
ATTACKED = {"model": PREDICTOR, "x": X, "labels": LABELS, "ball": BALL, "bounds": (0, 1), "batch_size": 6}
TRAINING = {"module": MODULE, "images": X, "targets": Y, "key": KEY, "preprocessing": PREPROCESSING}
WIDE = {"activation": "relu", "W_std": 1.0, "b_std": 0.1, "parameterization": "ntk", "width": 8}
ENGINE = {"architecture": ARCHITECTURE, "engine": "auto", "block_pairs": 4, "pallas": False}
FITTED = {"kernel": KERNEL, "x": X, "y": Y}
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))

# Good arguments of each function; what is left out is not a value that can be wrong by itself.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "fc": (ntkit.fc, {"depth": 1, **WIDE}),
    "conv": (ntkit.conv, {"depth": 1, **WIDE}),
    "convnet": (ntkit.convnet, {"depth": 1, **WIDE}),
    "myrtle": (ntkit.myrtle, {"depth": 5, **WIDE}),
    "Architecture.stax": (ARCHITECTURE.stax, {"num_outputs": 2, "width": 4}),
    "Architecture.flax": (ARCHITECTURE.flax, {"num_outputs": 2, "width": 4}),
    "ntk": (ntkit.ntk, ENGINE),
    "nngp": (ntkit.nngp, ENGINE),
    "from_stax": (ntkit.from_stax, {"kernel_fn": ARCHITECTURE.stax()[2], "get": "ntk"}),
    "empirical_ntk": (
        ntkit.empirical_ntk,
        {"apply_fn": MODULE.apply, "params": NETWORK.variables, "output": 0},
    ),
    "gram": (ntkit.gram, {"kernel": KERNEL, "x1": X, "x2": X, "block_size": 6, "mesh": MESH, "progress": False}),
    "Kernel": (lambda x1, x2: KERNEL(x1, x2), {"x1": X, "x2": X}),
    "Kernel.diagonal": (KERNEL.diagonal, {"x": X}),
    "Kernel.scale": (lambda scale: KERNEL * scale, {"scale": 2.0}),
    "of_pixels": (kernels.of_pixels, {"kernel": KERNEL, "preprocessing": PREPROCESSING}),
    "EmpiricalNTK.full": (EMPIRICAL.full, {"x1": X, "x2": X}),
    "EmpiricalNTK.product": (EMPIRICAL.product, {"x1": X, "x2": X, "v": Y}),
    "EmpiricalNTK.full_product": (EMPIRICAL.full_product, {"x1": X, "x2": X, "v": Y}),
    "EmpiricalNTK.outputs": (EMPIRICAL.outputs, {"x": X}),
    "fit": (
        regression.fit,
        FITTED
        | {"ridge": 0.1, "solver": regression.Cholesky(), "gram": np.float32(GRAM), "block_size": 6, "progress": False},
    ),
    "fit over a mesh": (functools.partial(regression.fit, KERNEL, X, Y, solver=regression.CG()), {"mesh": MESH}),
    "flow": (regression.flow, FITTED | {"time": 1.0, "learning_rate": 1.0}),
    "solve": (regression.solve, {"gram": np.float32(GRAM), "y": Y, "ridge": 0.1}),
    "accuracy": (regression.accuracy, {"model": PREDICTOR, "x": X, "labels": LABELS, "batch_size": 6}),
    "Predictor": (PREDICTOR, {"x": X}),
    "CG": (regression.CG, {"tolerance": 0.1, "rank": 2, "max_steps": 3, "key": KEY}),
    "one_hot": (data.one_hot, {"labels": LABELS, "num_classes": 2, "centred": True}),
    "load": (data.load, {"name": "digits", "data_dir": None}),
    "check_images": (lambda images: data.check_images("images", images), {"images": X}),
    "check_labels": (lambda labels: data.check_labels("labels", labels, 6, 2), {"labels": LABELS}),
    "Augmentation": (data.Augmentation, {"rotation": 1.0, "shift": 1, "flip": True, "channel_shift": 0.1}),
    "Augmentation()": (data.Augmentation(shift=1), {"key": KEY, "images": PICTURES}),
    "Standardize": (data.Standardize, {"mean": jnp.zeros(3), "std": jnp.ones(3)}),
    "Standardize.fit": (data.Standardize.fit, {"images": X}),
    "ZCA.fit": (data.ZCA.fit, {"images": X, "regularization": 0.1, "layer_norm": True}),
    "from_arrays": (data.Preprocessing.from_arrays, {"arrays": PREPROCESSING.to_arrays()}),
    "transform": (PREPROCESSING.transform, {"x": X}),
    "inverse": (PREPROCESSING.inverse, {"x": X}),
    "Identity": (data.Identity().transform, {"x": X}),
    "Split.choice": (SPLIT.choice, {"limit": 2, "key": KEY}),
    "Split": (data.Split, {"images": PICTURES, "labels": np.array([0, 1, 0, 1])}),
    "Dataset": (
        data.Dataset,
        {"name": "made up", "train": SPLIT, "test": SPLIT, "num_classes": 2, "class_names": ("a", "b")},
    ),
    "TrainedNetwork()": (NETWORK, {"x": X}),
    "Linf": (attacks.Linf, {"radius": 0.1}),
    "L2": (attacks.L2, {"radius": 0.1}),
    "fgsm": (attacks.fgsm, ATTACKED | {"loss": "mse"}),
    "pgd": (
        attacks.pgd,
        ATTACKED
        | {"key": KEY, "steps": 1, "step_size": 0.1, "restarts": 1, "random_start": True}
        | {"loss": "mse", "stop_early": True},
    ),
    "apgd": (
        attacks.apgd,
        ATTACKED | {"key": KEY, "steps": 1, "restarts": 1, "targets": 1, "loss": "cross_entropy"},
    ),
    "fab": (attacks.fab, ATTACKED | {"key": KEY, "steps": 1, "restarts": 1, "targets": 1}),
    "square": (attacks.square, ATTACKED | {"key": KEY, "queries": 1, "share": 0.5}),
    "autoattack": (
        attacks.autoattack,
        ATTACKED | {"key": KEY, "steps": 1, "queries": 1, "targets": 1, "record": lambda name, share: None},
    ),
    "Adversary": (
        functools.partial(attacks.Adversary, "pgd"),
        {"ball": BALL, "bounds": (0, 1), "steps": 1, "step_size": 0.1, "loss": "mse", "stop_early": False},
    ),
    "Adversary of a name": (lambda attack: attacks.Adversary(attack, BALL), {"attack": "fgsm"}),
    "Adversary()": (
        attacks.Adversary("pgd", BALL, steps=1),
        {"model": PREDICTOR, "x": X, "labels": LABELS, "key": KEY},
    ),
    "Preprocessed": (attacks.Preprocessed, {"model": PREDICTOR, "preprocessing": PREPROCESSING}),
    "evaluate": (
        attacks.evaluate,
        {"model": PREDICTOR, "x": X, "labels": LABELS, "attacks": [ADVERSARY], "key": KEY, "batch_size": 6},
    ),
    "eigenfeatures": (
        features.eigenfeatures,
        FITTED | {"top": 2, "gram": np.float32(GRAM), "mesh": MESH, "block_size": 6},
    ),
    "eigenfunctions": (FEATURES.eigenfunctions, {"x": X}),
    "usefulness": (features.usefulness, {"model": PREDICTOR, "x": X, "labels": LABELS, "batch_size": 6}),
    "robustness": (
        features.robustness,
        {"model": PREDICTOR, "x": X, "labels": LABELS, "adversary": ADVERSARY, "key": KEY, "batch_size": 6},
    ),
    "gradient_images": (features.gradient_images, {"model": PREDICTOR, "x": X, "labels": LABELS}),
    "sweep": (
        features.sweep,
        {"features": FEATURES, "x": X, "labels": LABELS, "ball": BALL, "bounds": (0, 1), "show_progress": False},
    ),
    "intrinsic_dimension": (features.intrinsic_dimension, {"images": X, "neighbours": [2, 3]}),
    "scores": (features.scores, {"gram": GRAM, "labels": LABELS}),
    "nngp_accuracy": (
        features.nngp_accuracy,
        {"draw": lambda key, x: x @ jax.random.normal(key, (3, 2)), "x": X, "labels": LABELS, "new": X}
        | {"truth": LABELS, "key": KEY, "num_classes": 2, "samples": 4, "ridge": 0.1},
    ),
    "effective_rank": (features.effective_rank, {"eigenvalues": [2.0, 1.0]}),
    "condition_number": (features.condition_number, {"eigenvalues": [2.0, 1.0]}),
    "concentration": (features.concentration, {"eigenvalues": [2.0, 1.0], "top": 1}),
    "alignment": (features.alignment, {"gram": GRAM, "y": Y, "centred": True}),
    "label_shares": (features.label_shares, {"vectors": np.eye(6), "y": Y}),
    "residuals": (features.residuals, {"vectors": np.eye(6), "residual": Y}),
    "predicted_residuals": (
        features.predicted_residuals,
        {"eigenvalues": np.ones(6), "vectors": np.eye(6), "y": Y, "steps": [0, 1], "learning_rate": 0.1},
    ),
    "similarity": (features.similarity, {"first": X, "second": X}),
    "simple_cnn": (networks.simple_cnn, {"num_outputs": 2, "width": 2}),
    "alexnet": (networks.alexnet, {"num_outputs": 2, "width": 2}),
    "vgg11": (networks.vgg11, {"num_outputs": 2, "width": 2}),
    "initialize": (
        networks.initialize,
        {"module": MODULE, "images": X, "key": KEY, "centred": True, "preprocessing": PREPROCESSING},
    ),
    "train": (
        networks.train,
        TRAINING
        | {"steps": 1, "loss": "mse", "optimizer": "adam", "learning_rate": 0.1, "schedule": "constant"}
        | {"batch_size": 6, "centred": True, "augment": lambda key, x: x, "adversary": ADVERSARY}
        | {"log_every": 1, "evaluate": lambda model: {}, "run": None, "checkpoint_every": 60, "show_progress": False},
    ),
    "checkpoints": (networks.checkpoints, TRAINING | {"at": [0, 1], "centred": True}),
    "kernel_dynamics": (networks.kernel_dynamics, TRAINING | {"sample": X, "at": [0, 1], "adversary": None}),
    "linearize": (networks.linearize, {"network": NETWORK}),
    "linearized_from": (
        networks.linearized_from,
        {"networks": {0: NETWORK, 1: NETWORK}, "images": X, "targets": Y, "x": X, "labels": LABELS, "key": KEY}
        | {"adversaries": {"fgsm": ADVERSARY}, "preprocessing": PREPROCESSING},
    ),
    "convergence": (
        networks.convergence,
        TRAINING | {"at": [0, 1], "kernel": KERNEL, "learning_rate": 0.1},
    ),
    "random_noise": (networks.random_noise, {"x": X, "ball": BALL, "key": KEY, "bounds": (0, 1)}),
    "transfer": (
        networks.transfer,
        TRAINING
        | {"x": X, "labels": LABELS, "examples": {"noise": X}, "adversaries": {"fgsm": ADVERSARY}, "steps": [1]},
    ),
    "transfer_rows": (networks.transfer_rows, {"network": "wide", "found": [{1: {"clean": 0.5}}]}),
    "kernel_distance": (networks.kernel_distance, {"first": GRAM, "second": np.eye(6)}),
    "Dynamics": (networks.Dynamics, {"steps": (0, 1), "grams": np.stack([GRAM, GRAM]), "networks": ()}),
    "Dynamics.concentration": (DYNAMICS.concentration, {"top": 2}),
    "Dynamics.alignment": (DYNAMICS.alignment, {"y": Y, "centred": False}),
    "Dynamics.part": (DYNAMICS.part, {"part": "top", "top": 2}),
    "Dynamics.rotation": (DYNAMICS.rotation, {"part": "top", "top": 2}),
    "Dynamics.summary": (DYNAMICS.summary, {"y": Y, "top": 2, "shares": [1]}),
    "kip": (
        distill.kip,
        {"kernel": KERNEL, "images": X, "labels": LABELS, "per_class": 1, "steps": 1, "key": KEY, "num_classes": 2}
        | {"init": "noise", "learn_labels": True, "learn_kernel": False, "optimizer": optax.sgd(0.1)}
        | {"target_batch": 6, "support_batch": 2, "augment": lambda key, x: x, "adversary": ADVERSARY}
        | {"preprocessing": PREPROCESSING, "loss": "mse", "ridge": 0.1, "log_every": 1, "evaluate": lambda model: {}}
        | {"run": None, "checkpoint_every": 60, "show_progress": False, "mesh": MESH},
    ),
    "label_solve": (
        distill.label_solve,
        {"kernel": KERNEL, "support_images": X[:2], "images": X, "labels": LABELS, "num_classes": 2}
        | {"ridge": 0.1, "batch_size": 6, "mesh": MESH},
    ),
    "ntga": (
        distill.ntga,
        {"kernel": KERNEL, "images": X, "labels": LABELS, "ball": BALL, "key": KEY, "time": 1.0}
        | {"validation": (X, LABELS), "block_size": 6, "steps": 1, "step_size": 0.1, "bounds": (0, 1), "loss": "mse"}
        | {"num_classes": 2, "target_batch": 6, "preprocessing": PREPROCESSING, "run": None, "checkpoint_every": 60}
        | {"show_progress": False},
    ),
    "Distilled": (distill.Distilled, {"images": X, "labels": Y, "history": {}, "metadata": {}, "kernel": KERNEL}),
    "Distilled.save": (DISTILLED.save, {"path": "distilled.npz"}),
    "Distilled.load": (distill.Distilled.load, {"path": "there.npz"}),
    "Run.create": (runs.Run.create, {"path": "run", "config": {"a": 1}}),
    "Run.resume": (runs.Run.resume, {"path": "there", "config": {"a": 1}}),
    "Run.log": (lambda step, loss: runs.Run.resume("there").log(step, loss=loss), {"step": 1, "loss": 0.5}),
    "Run.report": (
        lambda **options: runs.Run.resume("there").report(**options),
        {"title": "title", "summary": "words", "tables": {"t": [{"a": 1}]}, "figures": {}},
    ),
    "Loop": (
        runs.Loop,
        {"advance": lambda state, count: state, "record": lambda step, state: ({}, state), "steps": 1, "log_every": 1}
        | {"what": "work", "run": None, "checkpoint_every": 1.0, "show_progress": False},
    ),
    "atomic_write": (lambda path, mode: runs.atomic_write(path, mode).__enter__(), {"path": "file", "mode": "wb"}),
    "progress": (
        lambda **options: runs.progress(**options).__enter__(),
        {"total": 1, "description": "work", "start": 0, "enabled": False},
    ),
    "columns": (runs.columns, {"records": RECORDS}),
    "write_report": (
        runs.write_report,
        {"path": "report.html", "title": "title", "summary": {"a": 1}, "tables": {"t": [{"a": 1}]}}
        | {"figures": {}, "config": {}, "versions": {}, "device": {}, "footer": ""},
    ),
    "image_grid": (
        plot.image_grid,
        {"images": PICTURES, "labels": np.zeros((4, 2)), "classes": [0, 1, 0, 1], "class_names": ["a", "b"]}
        | {"columns": 2, "scale": "image", "title": "title"},
    ),
    "plot.history": (plot.history, {"metrics": RECORDS, "title": "title"}),
    "plot.transfer": (
        plot.transfer,
        {"rows": networks.transfer_rows("wide", [{1: {"clean": 0.5}}]), "names": {"clean": "as they are"}, "title": ""},
    ),
    "plot.features": (plot.features, {"swept": features.Sweep(*np.full((5, 3), 0.5)), "title": "title"}),
    "plot.dynamics": (plot.dynamics, {"found": {"standard": DYNAMICS.summary(top=2)}, "title": "title"}),
    "plot.convergence": (
        plot.convergence,
        {"found": {"true": networks.Convergence((0, 1), np.ones(3), np.ones(3), *np.ones((2, 2, 3)))}}
        | {"components": 2, "title": "title"},
    ),
    "plot.save": (plot.save, {"figure": plot.history(RECORDS), "path": "figure.png"}),
}

HOSTILE: list[Any] = [
    *(None, "x", "", b"x", True, 0, -1, 1.5, 10**12, 10**400, float("nan"), float("inf"), -float("inf"), 1j),
    *([], (), {}, [None], ["x"], {"x": None}, {1: 2}, set(), object(), type, ntkit.attacks.Linf, len, print),
    *(np.zeros(3), np.zeros((6, 3), int), np.zeros((0, 3)), np.full((6, 3), np.nan), np.full((6, 3), np.inf)),
    *(np.array("x"), np.array([None, 1]), np.zeros((2, 2, 2)), np.zeros((6, 3), complex), np.float32(-1), np.bool_(1)),
    *(jnp.zeros(()), jnp.zeros((6, 4)), jax.random.key(1), jax.random.split(KEY), KERNEL, BALL, PREPROCESSING),
    *(lambda *arguments, **options: None, lambda: None, range(3), Path("/"), Path("no/such/directory"), "x" * 10**5),
    *(np.ma.masked_array(X, X > 0.5), np.zeros((6, 3), ">f4"), np.zeros((6, 3), np.longdouble), Fraction(1, 2)),
    *(jnp.int32(1), 1e308, 5e-324),
]


class Accepted(Exception):
    """The arguments have passed the door."""


@pytest.fixture(autouse=True)
def only_the_door(monkeypatch, tmp_path) -> None:
    """What comes after the checks takes long, and is tested elsewhere."""

    def stop(*arguments: Any, **options: Any) -> None:
        raise Accepted

    monkeypatch.setattr(runs.Loop, "__call__", stop)
    monkeypatch.setattr(Problem, "solve", stop)
    monkeypatch.chdir(tmp_path)
    DISTILLED.save("there.npz")
    runs.Run.create("there", {"a": 1})


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """Give what is wrong with how a call ends, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**arguments)
        except (Accepted, FloatingPointError):
            return None
        except (ValueError, OSError) as error:
            text = str(error).partition("] ")[2] if str(error).startswith("[Errno") else str(error)
            # A network that is not one for x is told as a fault of the network.
            names = (*arguments, "apply_fn")
            named = any(text.startswith((f"{name}: ", f"{name}[", f"{name}.")) for name in names)
            return None if named and "\n" not in text else f"{type(error).__name__}: {text[:300]!r}"
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]!r}"
    return None


# These get as far as compiling something.
SLOW = ("evaluate", "nngp_accuracy", "sweep", "solve")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CALLS])
def test_bad_arguments_are_named(name: str) -> None:
    function, good = CALLS[name]
    assert outcome(function, good) is None
    faults = []
    for argument in good:
        for value in HOSTILE:
            if (found := outcome(function, good | {argument: value})) is not None:
                faults.append(f"{argument}={str(value)[:60]} ({type(value).__name__}): {found}")
    assert not faults, "\n".join(faults)


# Values without checks of their own, or made by others: results, warnings, protocols, and what stands for a part.
NOT_CALLED = {
    *("Architecture", "Kernel", "Sum", "Product", "Scaled", "Predictor", "Cholesky", "Preprocessing", "ZCA"),
    *("EmpiricalNTK", "EigenFeatures", "Ball", "Evaluation", "Measure", "Scores", "Sweep", "Report", "Solution"),
    *("Convergence", "Linearization", "Linearized", "Rotation", "TrainedNetwork", "Solver", "Operator", "InMemory"),
    *("OnDisk", "Recomputed", "Preconditioner", "cross_product", "operator_of", "randomly_pivoted_cholesky"),
    *("Interrupted", "Interruption", "Interruptible", "uninterrupted", "Progress", "Run", "mse", "cross_entropy"),
    *("warn_of_ridge", "Identity"),
}


# What other files of ntkit alone give to a loop.
LEFT_OUT = {"hidden", "one_by_one", "from_argument", "group", "place", "on_host"}


def test_every_public_function_is_called() -> None:
    rooms = (ntkit, attacks, data, distill, features, kernels, networks, regression, runs, solvers)
    public = {name for room in rooms for name in room.__all__ if callable(getattr(room, name))}
    public = {name for name in public if not name.endswith("Warning")}
    assert public - NOT_CALLED - {name.split("(")[0].split(".")[0] for name in CALLS} == set()
    assert not NOT_CALLED - public - {"Report"}
    # No argument of theirs is forgotten.
    for name in public & CALLS.keys():
        function, arguments = CALLS[name]
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        left = set(known) - set(arguments) - {"store", "mesh", "attack", *LEFT_OUT}
        assert not left, (name, left)
