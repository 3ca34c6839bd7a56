"""Robust features lie at the top of a kernel's spectrum, useful but fragile ones below.

Kernel regression is a sum of features, one for each eigenvector of the Gram matrix. Each is measured as a classifier by
itself: how useful it is, and how useful it still is under FGSM. Figure 4 of Tsilivis & Kempe 2022 (arXiv:2210.05577).

    python examples/robust_features.py [--smoke] [--dataset digits] [--data-dir DIR] [--out features.png]
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

import ntkit
from ntkit import features, plot
from ntkit.attacks import Adversary, Linf
from ntkit.data import Standardize, load, one_hot
from ntkit.kernels import of_pixels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="fewer images, to see that it runs")
parser.add_argument("--dataset", default="digits", help="digits, or the name of a TFDS data set")
parser.add_argument("--data-dir", type=Path, help="where TFDS has it")
parser.add_argument("--images", type=int, default=1000, help="images to decompose, and number of features")
parser.add_argument("--radius", type=float, default=0.1, help="of the l∞ ball, in pixels from 0 to 1")
parser.add_argument("--out", type=Path, help="picture to write")
options = parser.parse_args()

n, m = (60, 30) if options.smoke else (options.images, 200)
dataset = load(options.dataset, options.data_dir)
x, labels = dataset.train.images[:n], dataset.train.labels[:n]
new, truth = dataset.test.images[:m], dataset.test.labels[:m]
ball = Linf(options.radius)

# A kernel of pixels, so that the ball is one of pixels too.
kernel = of_pixels(ntkit.ntk(ntkit.fc(2)), Standardize.fit(dataset.train.images))
found = features.eigenfeatures(kernel, x, one_hot(labels, dataset.num_classes))
swept = features.sweep(found, new, truth, ball, show_progress=not options.smoke)

print("features       Σλ         accuracy   under FGSM   robust correlation")
edges = [0, *(edge for edge in (1, 3, 10, 30, 100, 300) if edge < len(found)), len(found)]
for i, j in itertools.pairwise(edges):
    rows = slice(i, j)
    print(
        f"{i:4d} to {j - 1:4d}   {np.sum(swept.eigenvalues[rows]):8.3g}   {np.mean(swept.accuracy[rows]):10.1%}   "
        f"{np.mean(swept.robust_accuracy[rows]):10.1%}   {np.mean(swept.robust_correlation[rows]):+18.3f}"
    )

print("\ntogether       accuracy   under PGD-20")
adversary = Adversary("pgd", ball, steps=20, loss="margin")
for i, j in ((0, 10), (10, len(found)), (0, len(found))):
    model = found[i:j]
    useful, robust = features.usefulness(model, new, truth), features.robustness(model, new, truth, adversary)
    print(f"{i:4d} to {j - 1:4d}   {useful.accuracy:8.1%}   {robust.accuracy:12.1%}")

if options.out is not None:
    plot.save(plot.features(swept, title=f"{dataset.name}, {len(found)} features of fc(2)"), options.out)
    print(f"written to {options.out}")
