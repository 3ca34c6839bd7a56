"""Training time in closed form: the test loss of the infinitely wide network as it trains.

`ntkit.regression.flow` is the network trained to time t; as t grows it becomes the ridgeless kernel regression. The
best time can be found by differentiating the validation loss with respect to it.

    python examples/training_time.py [--smoke]
"""

import argparse

import jax
import jax.numpy as jnp

import ntkit
from ntkit.data import Standardize, load, one_hot

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer images, to see that it runs")
options = parser.parse_args()

n = 100 if options.smoke else 600
digits = load("digits")
pixels = Standardize.fit(digits.train.images)
train, test = pixels.transform(digits.train.images[:n]), pixels.transform(digits.test.images)
labels = digits.train.labels[:n]
targets, test_targets = one_hot(labels, 10), one_hot(digits.test.labels, 10)
kernel = ntkit.ntk(ntkit.fc(2))


def test_loss(log_time):
    """Squared error on the test images of the network trained to time e^log_time."""
    model = ntkit.regression.flow(kernel, train, targets, jnp.exp(log_time))
    return 0.5 * jnp.mean((model(test) - test_targets) ** 2)


loss_and_slope = jax.jit(jax.value_and_grad(test_loss))
print("time        test loss   d loss / d log(time)   accuracy")
for log_time in jnp.linspace(2.0, 10.0, 3 if options.smoke else 8):
    loss, slope = loss_and_slope(log_time)
    model = ntkit.regression.flow(kernel, train, targets, jnp.exp(log_time))
    accuracy = ntkit.data.accuracy(model, test, digits.test.labels)
    print(f"{jnp.exp(log_time):9.3g}   {loss:9.5f}   {slope:+20.2e}   {accuracy:8.1%}")
limit = ntkit.regression.flow(kernel, train, targets, jnp.inf)
print(f"      inf   {0.5 * jnp.mean((limit(test) - test_targets) ** 2):9.5f}")
