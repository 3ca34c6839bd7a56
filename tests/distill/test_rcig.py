import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from ntkit import data, distill, networks, regression
from ntkit.data import one_hot
from ntkit.distill.pool import Pool
from ntkit.runs import Session

from .small import check_resumption, clouds
from .test_frepo import Small

IMAGES, LABELS = clouds()
KEY = jax.random.key(0)
MODULE = Small()
LEARNER = distill.RCIG(MODULE, pool=2, max_steps=3)


def rcig(learner=LEARNER, **options):
    return distill.distill(
        **{"learner": learner, "images": IMAGES, "labels": LABELS, "per_class": 1, "steps": 7, "key": KEY}
        | {"optimizer": optax.sgd(0.5), "session": Session(log_every=3)}
        | options
    )


def newton(objective, start, steps=30):
    """Minimize a function of an array to the last bit."""
    at, slope, curvature = start, jax.jit(jax.grad(objective)), jax.jit(jax.hessian(objective))
    for _ in range(steps):
        at = at - jnp.linalg.solve(curvature(at), slope(at))
    assert float(jnp.abs(slope(at)).max()) < 1e-12
    return at


@pytest.mark.slow
def test_the_implicit_gradient_is_that_of_a_training_that_has_converged(x64):
    """Trained again to its end for every change of the support set, by Newton's method; by finite differences."""
    learner = distill.RCIG(MODULE, ridge=0.1, damping=0.3, solver_steps=500)
    x, y = IMAGES[:3].astype(np.float64), np.asarray(one_hot(np.arange(3), 3), np.float64)
    all_images, all_targets = IMAGES.astype(np.float64), np.asarray(one_hot(LABELS, 3), np.float64)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), MODULE.init(KEY, x)["params"])
    body = {"first": params["first"]}
    origin, unravel = ravel_pytree(body)

    def features(flat, x):
        return MODULE.apply({"params": {**params, **unravel(flat)}}, x, method="features")

    def trained_for(of_features, x, y):
        return lambda flat: learner.objective(of_features, flat, x, y, origin=origin)

    # Where training ends for the support set as it is, by gradient descent and then Newton's method.
    objective = trained_for(features, x, y)
    slope = jax.jit(jax.grad(objective))
    flat = origin
    for _ in range(2000):
        flat = flat - 0.1 * slope(flat)
    now = newton(objective, flat, 5)

    def linearized(flat, x):
        value, slope = jax.jvp(lambda p: features(p, x), (now,), (flat - now,))
        return value + slope

    def outer(x, y, retrained):
        at = newton(trained_for(linearized, x, y), now, 4) if retrained else now
        phi, psi = linearized(at, x), linearized(at, all_images)
        gram = phi @ phi.T
        weights = jnp.linalg.solve(gram + 0.1 * jnp.trace(gram) / 3 * jnp.eye(3), y)
        return 0.5 * jnp.mean(jnp.sum((psi @ phi.T @ weights - all_targets) ** 2, axis=1))

    variables = {"params": {**params, **unravel(now)}}
    network = (variables, optax.sgd(0.1).init(params), {**params, **unravel(origin)})
    pool = Pool(jax.tree.map(lambda leaf: leaf[None], network), jnp.zeros(1, jnp.int32), KEY, jnp.zeros((), jnp.int32))

    @jax.jit
    def ours(x, y):
        predictions = learner.fitted((), x, y, pool, 0)(all_images)
        return 0.5 * jnp.mean(jnp.sum((predictions - all_targets) ** 2, axis=1))

    np.testing.assert_allclose(ours(x, y), outer(x, y, True), rtol=1e-10)
    found = [np.asarray(slope) for slope in jax.grad(ours, (0, 1))(jnp.asarray(x), jnp.asarray(y))]
    differences = []
    for which, at in ((0, (0, 0)), (0, (1, 2)), (0, (2, 3)), (1, (0, 0)), (1, (1, 2))):
        slopes = []
        for retrained in (True, False):
            ends = []
            for size in (1e-4, -1e-4):
                moved = [x.copy(), y.copy()]
                moved[which][at] += size
                ends.append(float(outer(*moved, retrained)))
            slopes.append((ends[0] - ends[1]) / 2e-4)
        np.testing.assert_allclose(found[which][at], slopes[0], rtol=1e-4, atol=1e-7)
        differences.append(abs(slopes[0] - slopes[1]) / abs(slopes[0]))
    # The implicit part is no small one.
    assert max(differences) > 0.1


@pytest.mark.slow
def test_interrupted_and_resumed_equals_undisturbed(tmp_path):
    learner = distill.RCIG(networks.standard_convnet(3, width=4, depth=1), pool=2, max_steps=3, solver_steps=4)
    images = IMAGES.reshape(-1, 2, 2, 1)
    options = {"images": images, "steps": 8, "targets": distill.Targets(batch=12)}
    check_resumption(functools.partial(rcig, learner, **options), images, tmp_path)


@pytest.mark.slow
def test_beats_real_images_on_digits():
    """By regression on the features of networks that it has not met."""
    digits = data.load("digits")
    pixels = data.Standardize.fit(digits.train.images)
    train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
    learner = distill.RCIG(Small(10, 128), pool=4, max_steps=20, ridge=1e-2, solver_steps=5)

    def accuracy(steps):
        made = distill.distill(
            learner,
            train,
            digits.train.labels,
            per_class=1,
            steps=steps,
            key=KEY,
            optimizer=networks.adam(0.05, decay_over=200),
            targets=distill.Targets(batch=256),
        )
        others = learner.begin(jax.random.key(9), jnp.asarray(made.images), jnp.asarray(made.labels))
        model = learner.fitted((), jnp.asarray(made.images), jnp.asarray(made.labels), others, 0)
        assert isinstance(model, regression.FeaturePredictor)
        return data.accuracy(model, test, digits.test.labels)

    real, distilled = accuracy(0), accuracy(200)
    print(real, distilled)
    assert distilled > real + 0.15
    assert distilled > 0.85


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": Small}, "module: got the class Small, expected"),
        ({"pool": 0}, "pool: got 0, expected"),
        ({"max_steps": 2.5}, "max_steps: got 2.5, expected"),
        ({"solver_steps": 0}, "solver_steps: got 0, expected"),
        ({"optimizer": "adam"}, "optimizer: got 'adam', expected an optax"),
        ({"ridge": 0.0}, "ridge: got 0.0, expected a finite number above 0"),
        ({"damping": 0}, "damping: got 0, expected a finite number above 0"),
    ],
)
def test_bad_fields(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        distill.RCIG(**{"module": MODULE} | change)


def test_another_number_of_outputs():
    with pytest.raises(ValueError, match="module: got one of 4 outputs, expected 3"):
        rcig(distill.RCIG(Small(4)))
