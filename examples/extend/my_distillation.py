"""A distillation of your own, with nothing but public names: matching the mean of each class in the kernel's space.

The support images of a class come as near as they can to the mean of its real ones, in the feature space of the tangent
kernel (maximum mean discrepancy). Records, checkpoints, progress and Ctrl-C are the session's.
"""

import argparse

import jax
import jax.numpy as jnp
import optax

import ntkit
from ntkit.runs import Method, Session, iterate

ADAM = optax.adam(0.02)


@ntkit.pytree_dataclass
class MeanMatching(Method):
    """Support images whose mean is that of each class in the space of a kernel."""

    kernel: ntkit.Kernel
    images: jax.Array  # (classes, n, height, width, channels)
    start: jax.Array  # (classes, per_class, height, width, channels)
    key: jax.Array

    def init(self):
        return {"support": self.start, "adam": ADAM.init(self.start), "step": jnp.zeros((), jnp.int32)}

    def step(self, state):
        key = jax.random.fold_in(self.key, state["step"])
        batch = self.images[:, jax.random.randint(key, (50,), 0, self.images.shape[1])]

        def distance(support, batch):
            return self.kernel(support).mean() - 2 * self.kernel(support, batch).mean()

        loss, gradient = jax.value_and_grad(lambda s: jax.vmap(distance)(s, batch).mean())(state["support"])
        update, adam = ADAM.update(gradient, state["adam"])
        return {"support": state["support"] + update, "adam": adam, "step": state["step"] + 1}, {"loss": loss}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few steps, for tests")
    smoke, digits = parser.parse_args().smoke, ntkit.data.load("digits")
    kernel, train, test = ntkit.ntk(ntkit.fc(2)), digits.train, digits.test
    classes = jnp.stack([train.images[train.labels == label][:139] for label in range(10)])
    method = MeanMatching(kernel, classes, classes[:, :2], jax.random.key(0))
    state, history = iterate(method, 20 if smoke else 500, Session(show_progress=True))
    print(f"loss {history['loss'][0]:.4f} → {history['loss'][-1]:.4f}")
    targets = ntkit.data.one_hot(jnp.repeat(jnp.arange(10), 2), 10)
    for name, support in (("first real", classes[:, :2]), ("matched", state["support"])):
        model = ntkit.regression.fit(kernel, support.reshape(20, 8, 8, 1), targets, 1e-3)
        print(f"20 images, {name}: {ntkit.data.accuracy(model, test.images, test.labels):.1%} of the test images")
