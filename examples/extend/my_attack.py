"""An attack of your own, with nothing but public names: random corners of the ball.

It asks for outputs only. Checks, batches, masks, radii and targets are the base class's.
"""

import argparse
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

import ntkit
from ntkit import attacks


@dataclasses.dataclass(frozen=True)
class RandomCorners(attacks.Attack):
    """The corner of the ball, of some random ones, at which the model is most wrong."""

    corners: int = 50
    needs_gradient: ClassVar[bool] = False

    def perturb(self, model, task):
        def look(i, state):
            best, worst, done = state
            corner = task.surface(task.own_keys(i))
            corner = task.project(task.x + task.radius * jnp.sign(corner - task.x))
            outputs = model(corner)
            better = ~done & (task.goal.margin(outputs) > worst)
            worst = jnp.where(better, task.goal.margin(outputs), worst)
            return task.keep(~better, best, corner), worst, done | task.reached(outputs)

        nothing = jnp.full(len(task.x), -jnp.inf, task.x.dtype)
        best, _, done = lax.fori_loop(0, self.corners, look, (task.x, nothing, task.done))
        return best, done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few images, for tests")
    smoke = parser.parse_args().smoke
    digits = ntkit.data.load("digits")
    targets = ntkit.data.one_hot(digits.train.labels, 10)
    model = ntkit.regression.fit(ntkit.ntk(ntkit.fc(1)), digits.train.images, targets)
    test = digits.test.choice(40 if smoke else 300, jax.random.key(0))
    ball = attacks.Linf(0.2)
    several = [RandomCorners(ball), attacks.Square(ball, queries=50), attacks.PGD(ball)]
    found = attacks.evaluate(model, test.images, test.labels, several)
    print(f"clean {found.clean:.1%}; " + "; ".join(f"{name} {share:.1%}" for name, share in found.robust.items()))
    patched = RandomCorners(ball, corners=10)(
        model, test.images, test.labels, key=jax.random.key(1), mask=jnp.arange(8)[None, :, None, None] < 4
    )
    print(f"in the upper half alone: {ntkit.data.accuracy(model, patched, test.labels):.1%}")
