"""Learn a kernel's hyper-parameters by the gradient of a held-out loss: a kernel is a pytree, so `jax.grad` is enough.

python examples/learn_kernel.py [--smoke]
"""

import argparse

import jax
import jax.numpy as jnp
import optax

import ntkit
from ntkit.data import Standardize, load, one_hot

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
options = parser.parse_args()

digits = load("digits")
pixels = Standardize.fit(digits.train.images)
images, targets = pixels.transform(digits.train.images), one_hot(digits.train.labels, 10)
train, held_out = slice(0, 150), slice(150, 450)


def loss(kernel):
    """Squared error on held-out images of the regression on the others."""
    model = ntkit.regression.fit(kernel, images[train], targets[train], ridge=1e-3)
    return 0.5 * jnp.mean(jnp.sum((model(images[held_out]) - targets[held_out]) ** 2, axis=1))


kernel = jax.tree.map(jnp.float32, ntkit.ntk(ntkit.fc(1)) + 0.1 * ntkit.nngp(ntkit.fc(2, activation="erf")))
optimizer = optax.adam(0.03)


@jax.jit
def step(kernel, state):
    """Take one step of Adam in all leaves of the kernel."""
    value, gradient = jax.value_and_grad(loss)(kernel)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(kernel, updates), state, value


state = optimizer.init(kernel)
steps = 3 if options.smoke else 60
for i in range(steps):
    kernel, state, value = step(kernel, state)
    if i % max(1, steps // 6) == 0 or i == steps - 1:
        print(f"step {i:3d}   held-out loss {value:.5f}")
test = pixels.transform(digits.test.images)
model = ntkit.regression.fit(kernel, images[train], targets[train], ridge=1e-3)
print(f"test accuracy {ntkit.data.accuracy(model, test, digits.test.labels):.1%}")
print("leaves:", ", ".join(f"{float(leaf):.3f}" for leaf in jax.tree.leaves(kernel)))
