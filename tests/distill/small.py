"""A kernel that compiles in no time, and a data set of three clouds."""

import signal

import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.kernels import Kernel
from ntkit.runs import Interrupted, Run, Session


@ntkit.pytree_dataclass
class RBF(Kernel):
    scale: float = 1.0

    def gram(self, x1, x2):
        return gaussian(x1, x1 if x2 is None else x2, self.scale)


def gaussian(x1, x2, scale):
    squares = jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1)
    return jnp.exp(-0.5 * scale**2 * squares)


def clouds(n=60, dtype=np.float32):
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 3
    centres = 2 * np.eye(3, 4)
    return (centres[labels] + 0.5 * generator.normal(size=(n, 4))).astype(dtype), labels


def check_resumption(distilled, images, directory):
    """Interrupt a distillation, `distilled(session=…)`, at its first record; resumed it has the bits of another one.

    It takes more than three steps, and has a record every three.
    """
    undisturbed = distilled(session=Session(log_every=3))
    run, seen = Run.create(directory / "run", {}), []

    def stop(model):
        assert model(images[:2]).shape == (2, 3)
        if not seen:
            seen.append(1)
            signal.raise_signal(signal.SIGINT)
        return {}

    session = Session(run=run, log_every=3, evaluate=stop)
    with pytest.raises(Interrupted, match="stopped after 3 of"):
        distilled(session=session)
    resumed = distilled(session=session)
    np.testing.assert_array_equal(resumed.images, undisturbed.images)
    np.testing.assert_array_equal(resumed.labels, undisturbed.labels)
    np.testing.assert_array_equal(resumed.history["loss"], undisturbed.history["loss"])
