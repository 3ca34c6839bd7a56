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
from ntkit import attacks, data, distill, features, gp, kernels, networks, plot, poison, regression, runs, solvers

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.uniform(size=(6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1])
Y = np.asarray(data.one_hot(LABELS, 2))
PICTURES = RNG.uniform(size=(4, 4, 4, 1)).astype(np.float32)
GRAM = np.eye(6) + 0.1
ARCHITECTURE = ntkit.fc(1, width=4)
KERNEL = ntkit.ntk(ARCHITECTURE)
SAMPLED = ntkit.random_features(ARCHITECTURE, key=KEY)
PREDICTOR = regression.fit(KERNEL, X, Y, 1e-2)
POSTERIOR = gp.condition(KERNEL, X, Y, 1e-2)
FEATURES = features.eigenfeatures(KERNEL, X, Y)
BALL = attacks.Linf(0.1)
SWEEP = features.Sweep(*(np.linspace(0.1, 0.9, len(FEATURES)) for _ in range(5)))
ADVERSARY = attacks.FGSM(BALL)
PREPROCESSING = data.Standardize.fit(X)
MODULE = ARCHITECTURE.flax(2)
NETWORK = networks.initialize(MODULE, X, key=KEY)
EMPIRICAL = ntkit.empirical_ntk(MODULE.apply, NETWORK.variables)
DYNAMICS = networks.Dynamics((0, 1, 2), np.stack([GRAM, GRAM + np.eye(6), 2 * GRAM + np.diag(np.arange(6))]))
DISTILLED = distill.Distilled(X, Y)
VECTORS = data.Split(X, LABELS)
SPLIT = data.Split(PICTURES, np.array([0, 1, 0, 1]))
SIZES = runs.Result(
    "sizes",
    {"degrees of freedom": 2.0},
    {"sizes": [{"images": n, "excess risk": 0.1 / n, "bound": 1.0 if n > 1 else None} for n in (1, 2, 3)]},
)
RECORDS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


@ntkit.pytree_dataclass
class Count(runs.Method):
    def init(self):
        return jnp.zeros(())

    def step(self, state):
        return state + 1, {"loss": state}


COUNT = Count()
ATTACKED = {"model": PREDICTOR, "x": X, "labels": LABELS, "batch_size": 6}
ATTACKED |= {"target": 1 - LABELS, "mask": np.ones(X.shape, bool), "radius": np.full(len(X), 0.1)}
TRAINING = {"module": MODULE, "images": X, "targets": Y, "key": KEY}
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
    "random_features": (
        ntkit.random_features,
        {"architecture": ARCHITECTURE, "get": "nngp", "key": KEY, "width": 4, "networks": 1},
    ),
    "Kernel.features": (SAMPLED.features, {"x": X}),
    "Primal": (regression.Primal, {"block_size": 4}),
    "from_stax": (ntkit.from_stax, {"kernel_fn": ARCHITECTURE.stax()[2], "get": "ntk"}),
    "empirical_ntk": (
        ntkit.empirical_ntk,
        {"apply_fn": MODULE.apply, "params": NETWORK.variables, "output": 0},
    ),
    "gram": (ntkit.gram, {"kernel": KERNEL, "x1": X, "x2": X, "block_size": 6, "mesh": MESH, "progress": False}),
    "Kernel": (lambda x1, x2: KERNEL(x1, x2), {"x1": X, "x2": X}),
    "Kernel.diagonal": (KERNEL.diagonal, {"x": X}),
    "Kernel.scale": (lambda scale: KERNEL * scale, {"scale": 2.0}),
    "of_pixels": (data.of_pixels, {"of_images": KERNEL, "preprocessing": PREPROCESSING}),
    "EmpiricalNTK.full": (EMPIRICAL.full, {"x1": X, "x2": X}),
    "Kernel.matmul": (EMPIRICAL.matmul, {"x1": X, "x2": X, "v": Y}),
    "EmpiricalNTK.full_product": (EMPIRICAL.full_product, {"x1": X, "x2": X, "v": Y}),
    "EmpiricalNTK.outputs": (EMPIRICAL.outputs, {"x": X}),
    "fit": (
        regression.fit,
        FITTED
        | {"ridge": 0.1, "solver": regression.Cholesky(), "gram": np.float32(GRAM), "block_size": 6, "progress": False},
    ),
    "fit over a mesh": (functools.partial(regression.fit, KERNEL, X, Y, solver=regression.CG()), {"mesh": MESH}),
    "flow": (regression.flow, FITTED | {"time": 1.0, "learning_rate": 1.0}),
    "condition": (gp.condition, FITTED | {"noise": 0.1}),
    "log_marginal_likelihood": (gp.log_marginal_likelihood, FITTED | {"noise": 0.1}),
    "maximize": (
        gp.maximize,
        FITTED | {"noise": 0.1, "key": KEY, "starts": 1, "within": 2.0, "steps": 1, "optimizer": optax.sgd(0.1)},
    ),
    "ensemble": (
        gp.ensemble,
        {"ntk": KERNEL, "nngp": KERNEL, "x": X, "y": Y, "time": 1.0, "learning_rate": 1.0},
    ),
    "Process.mean": (POSTERIOR.mean, {"x": X}),
    "Process.variance": (POSTERIOR.variance, {"x": X}),
    "Process.covariance": (POSTERIOR.covariance, {"x1": X, "x2": X}),
    "Process.sample": (POSTERIOR.sample, {"x": X, "key": KEY, "count": 1}),
    "solve": (regression.solve, {"gram": np.float32(GRAM), "y": Y, "ridge": 0.1}),
    "accuracy": (data.accuracy, {"model": PREDICTOR, "x": X, "labels": LABELS, "batch_size": 6}),
    "Predictor": (PREDICTOR, {"x": X}),
    "CG": (regression.CG, {"tolerance": 0.1, "rank": 2, "max_steps": 3, "key": KEY}),
    "one_hot": (data.one_hot, {"labels": LABELS, "num_classes": 2, "centred": True}),
    "save": (ntkit.save, {"model": PREDICTOR, "path": "model.npz"}),
    "ntkit.load": (ntkit.load, {"path": "kept.npz", "classes": []}),
    "load": (data.load, {"name": "table.csv", "data_dir": None, "target": "t", "test_fraction": 0.5, "key": KEY}),
    "check_images": (lambda images: data.check_images("images", images), {"images": X}),
    "check_labels": (lambda labels: data.check_labels("labels", labels, 6, 2), {"labels": LABELS}),
    "Augmentation": (data.Augmentation, {"rotation": 1.0, "shift": 1, "flip": True, "channel_shift": 0.1}),
    "Augmentation()": (data.Augmentation(shift=1), {"key": KEY, "images": PICTURES}),
    "Standardize": (data.Standardize, {"mean": jnp.zeros(3), "std": jnp.ones(3)}),
    "Standardize.fit": (data.Standardize.fit, {"images": X}),
    "ZCA.fit": (data.ZCA.fit, {"images": X, "regularization": 0.1, "layer_norm": True}),
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
    "Linf": (attacks.Linf, {"radius": 0.1, "bounds": (0, 1)}),
    "L2": (attacks.L2, {"radius": 0.1, "bounds": (0, 1)}),
    "FGSM": (attacks.FGSM, {"ball": BALL, "loss": "mse"}),
    "PGD": (
        attacks.PGD,
        {"ball": BALL, "steps": 1, "step_size": 0.1, "restarts": 1, "random_start": True, "loss": "mse"}
        | {"stop_early": True},
    ),
    "APGD": (attacks.APGD, {"ball": BALL, "steps": 1, "restarts": 1, "targets": 1, "loss": "cross_entropy"}),
    "FAB": (attacks.FAB, {"ball": BALL, "steps": 1, "restarts": 1, "targets": 1}),
    "Square": (attacks.Square, {"ball": BALL, "queries": 1, "share": 0.5}),
    "AutoAttack": (attacks.AutoAttack, {"ball": BALL, "steps": 1, "queries": 1, "targets": 1}),
    "FGSM()": (ADVERSARY, ATTACKED),
    "PGD()": (attacks.PGD(BALL, steps=1), ATTACKED | {"key": KEY}),
    "AutoAttack()": (attacks.AutoAttack(BALL, steps=1, queries=1, targets=1), ATTACKED | {"key": KEY}),
    "Randomized": (attacks.Randomized, {"model": lambda x, key: PREDICTOR(x), "key": KEY, "samples": 2}),
    "of_pixels of a model": (data.of_pixels, {"of_images": PREDICTOR, "preprocessing": PREPROCESSING}),
    "of_pixels of a module": (data.of_pixels, {"of_images": MODULE, "preprocessing": PREPROCESSING}),
    "evaluate": (
        attacks.evaluate,
        {
            "model": PREDICTOR,
            "x": X,
            "labels": LABELS,
            "attacks": [ADVERSARY],
            "key": KEY,
            "batch_size": 6,
            "target": 1 - LABELS,
        }
        | {"mask": True, "radius": np.full(len(X), 0.1)},
    ),
    "eigenfeatures": (
        features.eigenfeatures,
        FITTED | {"top": 2, "gram": np.float32(GRAM), "mesh": MESH, "block_size": 6},
    ),
    "eigenfunctions": (FEATURES.eigenfunctions, {"x": X}),
    "usefulness": (features.usefulness, {"model": PREDICTOR, "x": X, "labels": LABELS, "batch_size": 6}),
    "robustness": (
        features.robustness,
        {"model": PREDICTOR, "x": X, "labels": LABELS, "attack": ADVERSARY, "key": KEY, "batch_size": 6},
    ),
    "gradient_images": (features.gradient_images, {"model": PREDICTOR, "x": X, "labels": LABELS}),
    "sweep": (
        features.sweep,
        {"features": FEATURES, "x": X, "labels": LABELS, "ball": BALL, "show_progress": False},
    ),
    "spectrum_parts": (
        features.spectrum_parts,
        {"features": FEATURES, "sweep": SWEEP, "x": X, "labels": LABELS, "targets": Y, "ball": BALL, "edges": [1]},
    ),
    "rank_networks": (
        networks.rank_networks,
        {"modules": {"a": MODULE, "b": MODULE}, "x": X, "labels": LABELS, "new": X, "truth": LABELS, "key": KEY}
        | {"scored": 4, "epochs": 1, "steps": 1, "learning_rate": 0.1, "seeds": 1, "show_progress": False},
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
        {"module": MODULE, "images": X, "key": KEY, "centred": True},
    ),
    "train": (
        networks.train,
        TRAINING
        | {"steps": 1, "loss": "mse", "optimizer": optax.sgd(0.1), "session": runs.Session()}
        | {"batch_size": 6, "centred": True, "augment": lambda key, x: x, "adversary": ADVERSARY},
    ),
    "adam": (networks.adam, {"learning_rate": 0.1, "decay_over": 3}),
    "adabelief": (networks.adabelief, {"learning_rate": 0.1, "decay_over": 3}),
    "sgd": (networks.sgd, {"learning_rate": 0.1, "decay_over": 3}),
    "checkpoints": (networks.checkpoints, TRAINING | {"at": [0, 1], "centred": True}),
    "kernel_dynamics": (networks.kernel_dynamics, TRAINING | {"sample": X, "at": [0, 1], "adversary": None}),
    "linearize": (networks.linearize, {"network": NETWORK}),
    "linearized_from": (
        networks.linearized_from,
        {"networks": {0: NETWORK, 1: NETWORK}, "images": X, "targets": Y, "x": X, "labels": LABELS, "key": KEY}
        | {"adversaries": {"fgsm": ADVERSARY}},
    ),
    "convergence": (
        networks.convergence,
        TRAINING | {"at": [0, 1], "kernel": KERNEL, "learning_rate": 0.1},
    ),
    "random_noise": (networks.random_noise, {"x": X, "ball": BALL, "key": KEY}),
    "transfer": (
        networks.transfer,
        TRAINING
        | {"x": X, "labels": LABELS, "examples": {"noise": X}, "adversaries": {"fgsm": ADVERSARY}, "steps": [1]},
    ),
    "transfer_rows": (networks.transfer_rows, {"network": "wide", "found": [{1: {"clean": 0.5}}]}),
    "transfer_result": (
        networks.transfer_result,
        {
            "rows": networks.transfer_rows("wide", [{1: {"clean": 0.5}}]),
            "names": {"clean": "as they are"},
            "title": "t",
        },
    ),
    "dynamics_result": (
        networks.dynamics_result,
        {"found": {"standard": DYNAMICS.summary(Y, top=2) | {"accuracy": {"clean": [0.5, 0.5, 0.5]}}}}
        | {"linearized": {}, "title": "t"},
    ),
    "kernel_distance": (networks.kernel_distance, {"first": GRAM, "second": np.eye(6)}),
    "Dynamics": (networks.Dynamics, {"steps": (0, 1), "grams": np.stack([GRAM, GRAM]), "networks": ()}),
    "Dynamics.concentration": (DYNAMICS.concentration, {"top": 2}),
    "Dynamics.alignment": (DYNAMICS.alignment, {"y": Y, "centred": False}),
    "Dynamics.part": (DYNAMICS.part, {"part": "top", "top": 2}),
    "Dynamics.rotation": (DYNAMICS.rotation, {"part": "top", "top": 2}),
    "Dynamics.summary": (DYNAMICS.summary, {"y": Y, "top": 2, "shares": [1]}),
    "KIP": (distill.KIP, {"kernel": KERNEL, "ridge": 0.1}),
    "RFAD": (
        distill.RFAD,
        {"architecture": ntkit.fc(1), "width": 4, "networks": 1, "redraw_every": 1, "ridge": 0.1, "get": "nngp"},
    ),
    "FRePo": (
        distill.FRePo,
        {"module": MODULE, "pool": 2, "max_steps": 2, "optimizer": optax.sgd(0.1), "ridge": 0.1},
    ),
    "RCIG": (
        distill.RCIG,
        {"module": MODULE, "pool": 2, "max_steps": 2, "optimizer": optax.sgd(0.1), "ridge": 0.1}
        | {"damping": 0.1, "solver_steps": 2},
    ),
    "degrees_of_freedom": (distill.degrees_of_freedom, {"gram": GRAM, "ridge": 0.1}),
    "judge": (
        distill.judge,
        {"sets": {"s": DISTILLED}, "modules": {"m": MODULE}, "train": VECTORS, "test": VECTORS, "key": KEY, "seeds": 1}
        | {
            "augment": lambda key, x: x,
            "centred": ["m"],
            "learning_rates": [0.1],
            "steps": [1],
            "held_out": 3,
            "attacked": None,
            "show_progress": False,
        },
    ),
    "boost": (
        distill.boost,
        {"learner": distill.KIP(KERNEL), "images": X, "labels": LABELS, "stages": [1], "steps": 1, "key": KEY},
    ),
    "herded": (distill.herded, {"images": X, "labels": LABELS, "per_class": 1, "features": lambda x: x}),
    "resnet18": (networks.resnet18, {"num_outputs": 2, "width": 2}),
    "exact_set": (distill.exact_set, {"kernel": SAMPLED, "images": X, "targets": Y, "ridge": 0.1}),
    "excess_risks": (
        distill.excess_risks,
        {
            "architecture": ARCHITECTURE,
            "images": X,
            "targets": Y,
            "widths": [2],
            "key": KEY,
            "get": "ntk",
            "ridge": 0.1,
        },
    ),
    "RaTBPTT": (distill.RaTBPTT, {"module": MODULE, "unroll": 4, "window": 2, "optimizer": optax.sgd(0.1)}),
    "kernel_of_features": (kernels.kernel_of_features, {"function": lambda params, x: x, "params": ()}),
    "standard_convnet": (networks.standard_convnet, {"num_outputs": 2, "width": 2, "depth": 1}),
    "distill": (
        distill.distill,
        {"learner": distill.KIP(KERNEL), "images": X, "labels": LABELS, "per_class": 1, "steps": 1, "key": KEY}
        | {"support": distill.Support(), "targets": distill.Targets(), "adversary": ADVERSARY, "mesh": MESH}
        | {"optimizer": optax.sgd(0.1), "session": runs.Session()},
    ),
    "Support": (distill.Support, {"init": "noise", "learn": ("images", "labels"), "batch": 2, "fixed": 0}),
    "Targets": (
        distill.Targets,
        {"batch": 6, "augment": lambda key, x: x, "preprocessing": PREPROCESSING, "loss": "mse"},
    ),
    "Support of distill": (
        lambda init: distill.distill(
            *(distill.KIP(KERNEL), X, LABELS), per_class=1, steps=1, key=KEY, support=distill.Support(init=init)
        ),
        {"init": "noise"},
    ),
    "Targets of distill": (
        lambda augment, preprocessing, loss: distill.distill(
            *(distill.KIP(KERNEL), X, LABELS),
            per_class=1,
            steps=1,
            key=KEY,
            targets=distill.Targets(augment=augment, preprocessing=preprocessing, loss=loss),
        ),
        {"augment": lambda key, x: x, "preprocessing": PREPROCESSING, "loss": "mse"},
    ),
    "Session": (
        runs.Session,
        {"run": None, "log_every": 1, "checkpoint_every": 60, "show_progress": False, "evaluate": lambda model: {}},
    ),
    "iterate": (runs.iterate, {"method": COUNT, "steps": 1, "session": runs.Session()}),
    "compare_with_real": (
        distill.compare_with_real,
        {"distilled": DISTILLED, "kernels": {"k": KERNEL}, "train": VECTORS, "test": VECTORS, "ridge": 0.1}
        | {"draws": 1, "limit": 6, "name": "distilled"},
    ),
    "UnderAttack": (distill.UnderAttack, {"ball": BALL, "test": VECTORS, "preprocessing": PREPROCESSING}),
    "UnderAttack.cells": (distill.UnderAttack(BALL, VECTORS, PREPROCESSING).cells, {"models": [lambda x: x[:, :3]]}),
    "robustness_of_sets": (
        distill.robustness_of_sets,
        {"sets": {"s": DISTILLED}, "kernel": KERNEL, "modules": {}, "train": VECTORS, "test": VECTORS, "ridge": 0.1}
        | {"preprocessing": PREPROCESSING, "adversary": ADVERSARY, "training": {}, "seeds": 1, "show_progress": False},
    ),
    "label_solve": (
        distill.label_solve,
        {"kernel": KERNEL, "support_images": X[:2], "images": X, "labels": LABELS, "ridge": 0.1, "mesh": MESH},
    ),
    "ntga": (
        poison.ntga,
        {"kernel": KERNEL, "images": X, "labels": LABELS, "ball": BALL, "key": KEY, "time": 1.0}
        | {"validation": (X, LABELS), "block_size": 6, "steps": 1, "step_size": 0.1, "loss": "mse"}
        | {"target_batch": 6, "preprocessing": PREPROCESSING, "session": runs.Session()},
    ),
    "Distilled": (distill.Distilled, {"images": X, "labels": Y, "history": {}, "metadata": {}, "kernel": KERNEL}),
    "Distilled.save": (DISTILLED.save, {"path": "distilled.npz"}),
    "Distilled.load": (distill.Distilled.load, {"path": "there.npz"}),
    "Run.create": (runs.Run.create, {"path": "run", "config": {"a": 1}}),
    "Run.resume": (runs.Run.resume, {"path": "there", "config": {"a": 1}}),
    "Run.log": (lambda step, loss: runs.Run.resume("there").log(step, loss=loss), {"step": 1, "loss": 0.5}),
    "Run.write": (lambda result: runs.Run.resume("there").write(result), {"result": runs.Result("title")}),
    "Result": (
        runs.Result,
        {
            "title": "title",
            "summary": {"a": 1},
            "tables": {"t": [{"a": 1}]},
            "figures": {},
            "arrays": {},
            "captions": {},
        },
    ),
    "atomic_write": (lambda path, mode: runs.atomic_write(path, mode).__enter__(), {"path": "file", "mode": "wb"}),
    "progress": (
        lambda **options: runs.progress(**options).__enter__(),
        {"total": 1, "description": "work", "start": 0, "enabled": False},
    ),
    "columns": (runs.columns, {"records": RECORDS}),
    "write_report": (
        runs.write_report,
        {"path": "report.html", "result": runs.Result("title")}
        | {"config": {}, "versions": {}, "device": {}, "footer": ""},
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
    "plot.sizes": (plot.sizes, {"result": SIZES, "title": "title"}),
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

    monkeypatch.setattr("ntkit.runs.loop._run", stop)
    monkeypatch.setattr("ntkit.attacks.attack._solve", stop)
    monkeypatch.chdir(tmp_path)
    DISTILLED.save("there.npz")
    ntkit.save(KERNEL, "kept.npz")
    (tmp_path / "table.csv").write_text("a,t\n" + "\n".join(f"{i},{i % 2}" for i in range(8)))
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
SLOW = (
    "evaluate",
    "nngp_accuracy",
    "sweep",
    "solve",
    "robustness_of_sets",
    "UnderAttack.cells",
    "rank_networks",
    "spectrum_parts",
    "maximize",
    "excess_risks",
    "exact_set",
)


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
    *("FeatureKernel", "FeaturePredictor", "Learner", "Posterior", "Ensemble", "LeaveOneOut", "Maximum"),
    *("Attack", "Task", "Goal", "ascent", "shrinking_loop"),
    *("EmpiricalNTK", "EigenFeatures", "Ball", "Evaluation", "Measure", "Scores", "Sweep", "Report", "Solution"),
    *("Convergence", "Linearization", "Linearized", "Rotation", "TrainedNetwork", "Solver", "Operator", "InMemory"),
    *("OnDisk", "Recomputed", "Preconditioner", "operator_of", "randomly_pivoted_cholesky"),
    *("Interrupted", "Interruption", "Interruptible", "uninterrupted", "Progress", "Run", "mse", "cross_entropy"),
    *("warn_of_ridge", "Identity", "Method", "pytree_dataclass", "static_field", "Share"),
}


def test_every_public_function_is_called() -> None:
    rooms = (ntkit, attacks, data, distill, features, gp, kernels, networks, poison, regression, runs, solvers)
    public = {name for room in rooms for name in room.__all__ if callable(getattr(room, name))}
    public = {name for name in public if not name.endswith("Warning")}
    assert public - NOT_CALLED - {name.split("(")[0].split(".")[0] for name in CALLS} == set()
    assert not NOT_CALLED - public - {"Report"}
    # No argument of theirs is forgotten.
    for name in public & CALLS.keys():
        function, arguments = CALLS[name]
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        left = set(known) - set(arguments) - {"store", "mesh", "attack"}
        assert not left, (name, left)
