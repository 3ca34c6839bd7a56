"""Distil scikit-learn's digits into one image per class, and compare with real images.

python examples/distill_digits.py [--smoke] [--out digits.png]
"""

import argparse
from pathlib import Path

import jax

import ntkit
from ntkit import plot
from ntkit.data import Standardize, load, one_hot

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
parser.add_argument("--out", type=Path, help="where to save a picture of the distilled images")
options = parser.parse_args()

digits = load("digits")
pixels = Standardize.fit(digits.train.images)
train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
kernel = ntkit.ntk(ntkit.fc(1))


def test_accuracy(images, targets):
    """Fit the kernel regression on a support set and test it."""
    model = ntkit.regression.fit(kernel, images, targets)
    return ntkit.data.accuracy(model, test, digits.test.labels)


arguments = {"per_class": 1, "key": jax.random.key(0)}
learner = ntkit.distill.KIP(kernel)
real = ntkit.distill.distill(learner, train, digits.train.labels, steps=0, **arguments)
distilled = ntkit.distill.distill(
    *(learner, train, digits.train.labels),
    steps=20 if options.smoke else 1000,
    session=ntkit.runs.Session(show_progress=True),
    **arguments,
)
solved = ntkit.distill.label_solve(kernel, real.images, train, digits.train.labels)

print(f"10 real images:                  {test_accuracy(real.images, real.labels):.1%}")
print(f"the same, labels solved:         {test_accuracy(solved.images, solved.labels):.1%}")
print(f"10 distilled images:             {test_accuracy(distilled.images, distilled.labels):.1%}")
print(f"all {len(train):,} real images:          {test_accuracy(train, one_hot(digits.train.labels, 10)):.1%}")
if options.out:
    grid = plot.image_grid(pixels.inverse(distilled.images), distilled.labels, class_names=digits.class_names)
    plot.save(grid, options.out)
