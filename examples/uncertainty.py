"""How sure a wide network is: a Gaussian process on a table of 442 patients, and whether its intervals keep their word.

The covariance is that of the infinitely wide network; its hyper-parameters and the noise are those under which the
training rows are likeliest.

    python examples/uncertainty.py [--smoke]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import ntkit
from ntkit import gp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer rows and steps, to see that it runs")
options = parser.parse_args()

table, target = load_diabetes(return_X_y=True)
train, test, y, truth = train_test_split(table, target[:, None], test_size=0.3, random_state=0)
if options.smoke:
    train, y = train[:80], y[:80]
columns, outputs = StandardScaler().fit(train), StandardScaler().fit(y)
x, new = (columns.transform(rows).astype(np.float32) for rows in (train, test))
y, truth = (outputs.transform(values).astype(np.float32) for values in (y, truth))

kernel = ntkit.nngp(ntkit.fc(2))
best = gp.maximize(kernel, x, y, 0.5, key=jax.random.key(0), steps=5 if options.smoke else 40)
print("kernel                 log likelihood   left out: error, log density   test: error, within 90 %")
for name, covariance, noise in (("as it comes", kernel, 0.5), ("likeliest", best.kernel, best.noise)):
    posterior = gp.condition(covariance, x, y, noise)
    left_out = posterior.leave_one_out()
    error = jnp.sqrt(jnp.mean((left_out.mean - y) ** 2))
    deviation = jnp.sqrt(posterior.variance(new) + posterior.noise)[:, None]
    wrong = posterior(new) - truth
    within = jnp.mean(jnp.abs(wrong) < 1.645 * deviation)
    print(
        f"{name:20s} {posterior.log_marginal_likelihood:16.1f} {error:18.3f}, {left_out.log_density.mean():.3f}"
        f" {jnp.sqrt(jnp.mean(wrong**2)):19.3f}, {within:.1%}"
    )
