"""Distillation over a mesh equals that on one device."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkit import distill, fc
from ntkit.runs import Interrupted, Run
from tests import flat
from tests.distill.small import RBF, clouds
from tests.distill.test_frepo import Small

# 57: no multiple of 8, nor of 4.
IMAGES, LABELS = clouds(57)
KEY = jax.random.key(0)
SGD = optax.sgd(0.05, momentum=0.9)
LINE_SEARCH = optax.chain(optax.sgd(0.05), optax.scale_by_backtracking_linesearch(5))


def ranking(predictions, targets):
    """A loss that is no mean over targets."""
    return jax.nn.logsumexp(jnp.sum((predictions - targets) ** 2, axis=1))


def kip(mesh, **options):
    defaults = {
        "kernel": [RBF(0.7), RBF(1.3)],
        "images": IMAGES,
        "labels": LABELS,
        "per_class": 2,
        "steps": 7,
        "key": KEY,
        "learn": ("images", "labels", "kernel"),
        "optimizer": SGD,
        "target_batch": 21,
        "support_batch": 4,
        "augment": noise,
        "ridge": 1e-3,
        "log_every": 2,
    }
    return flat.kip(**defaults | options, mesh=mesh)


def noise(key, images):
    return images + 0.1 * jax.random.normal(key, images.shape)


def same(one, other, **tolerance):
    leaves = [jax.tree.leaves((each.images, each.labels, each.kernel, dict(each.history))) for each in (one, other)]
    for got, expected in zip(*leaves, strict=True):
        np.testing.assert_allclose(got, expected, **tolerance)


def check_interrupted_and_resumed(mesh, directory):
    """A signal reaches one process alone; both stop there, and go on from what the first one has on disk."""
    leads = jax.process_index() == 0
    run = Run.create(directory / "run", {}) if leads else None
    calls = []

    def interrupt(model):
        calls.append(model)
        if len(calls) == 2 and jax.process_index() == jax.process_count() - 1:
            signal.raise_signal(signal.SIGTERM)
        return {"norm": float(jnp.sum(model.weights**2))}

    where = f", saved in {run.path}" if leads else "$"
    with pytest.raises(Interrupted, match=f"stopped after 4 of 7 steps{where}") as caught:
        kip(mesh, run=run, evaluate=interrupt)
    assert caught.value.signal == signal.SIGTERM
    undisturbed = kip(mesh)
    resumed = kip(mesh, run=Run.resume(run.path) if leads else None)
    np.testing.assert_array_equal(resumed.images, undisturbed.images)
    np.testing.assert_array_equal(resumed.history["loss"], undisturbed.history["loss"])
    assert np.isfinite(resumed.history["norm"]).sum() == 2
    if leads:
        assert [record["step"] for record in run.metrics()] == [2, 4, 6, 7]


def check_equals_one_device(mesh, directory):
    same(kip(mesh), kip(None), rtol=1e-6, atol=1e-6)


def check_any_loss_and_optimizer(mesh, directory):
    if jax.process_count() > 1:
        return
    options = {
        "kernel": RBF(),
        "steps": 3,
        "augment": None,
        "loss": ranking,
        "optimizer": LINE_SEARCH,
        "target_batch": None,
        "support_batch": None,
    }
    same(kip(mesh, **options), kip(None, **options), rtol=1e-6, atol=1e-6)


def check_other_learners(mesh, directory):
    learners = (
        distill.FRePo(Small(), pool=2, max_steps=2, ridge=1e-2),
        distill.RFAD(fc(1), width=16, redraw_every=2),
        distill.RCIG(Small(), pool=2, max_steps=2, solver_steps=3),
        distill.RaTBPTT(Small(), unroll=4, window=2),
    )
    # To a learner another process is nothing but more devices.
    for learner in learners if jax.process_count() == 1 else learners[:1]:
        options = {"per_class": 1, "steps": 5, "key": KEY, "optimizer": SGD, "targets": distill.Targets(batch=21)}
        made = [distill.distill(learner, IMAGES, LABELS, mesh=each, **options) for each in (mesh, None)]
        # Sums in another order, through relus and the training of networks.
        same(*made, rtol=2e-2, atol=1e-3)


def check_label_solve(mesh, directory):
    solved = [distill.label_solve(RBF(), IMAGES[:6], IMAGES, LABELS, ridge=1e-3, mesh=each) for each in (mesh, None)]
    same(*solved, rtol=1e-4, atol=1e-5)


def check_other_arguments_are_refused(mesh, directory):
    if jax.process_count() == 1:
        return
    mine = jax.process_index()
    different = {
        "key": jax.random.key(mine),
        "ridge": 10.0**-mine,
        "steps": 7 + mine,
        "labels": np.roll(LABELS, mine),
        "init": "noise" if mine else "real",
        "kernel": RBF(0.5 + mine),
    }
    for name, value in different.items():
        told = "learner" if name == "kernel" else name
        with pytest.raises(ValueError, match=rf"^{told}: got .* in process {mine} and another value in process"):
            kip(mesh, **{name: value})


def check_an_error_of_one_process_reaches_all(mesh, directory):
    def fail(model):
        if jax.process_index() == jax.process_count() - 1:
            raise ValueError("this one failed")
        return {}

    message = "this one failed" if jax.process_index() == jax.process_count() - 1 else "process 1 failed"
    with pytest.raises((ValueError, RuntimeError), match=message):
        kip(mesh, evaluate=fail)
