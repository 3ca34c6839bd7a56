"""Robust features lie at the top of a kernel's spectrum, useful but fragile ones below.

Kernel regression is a sum of features, one for each eigenvector of the Gram matrix. Each is measured as a classifier by
itself: how useful it is, and how useful it still is under FGSM. Then the same features are looked for in the kernels of
other architectures. Tsilivis & Kempe 2022 (arXiv:2210.05577), section 4.

    python examples/robust_features.py [--smoke] [--dataset digits] [--data-dir DIR] [--out DIR]
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

import ntkit
from ntkit import features, plot
from ntkit.attacks import PGD, Linf
from ntkit.data import Standardize, load, of_pixels, one_hot

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="fewer images, to see that it runs")
parser.add_argument("--dataset", default="digits", help="digits, or the name of a TFDS data set")
parser.add_argument("--data-dir", type=Path, help="where TFDS has it")
parser.add_argument("--images", type=int, default=1000, help="images to decompose, and number of features")
parser.add_argument("--radius", type=float, default=0.1, help="of the l∞ ball, in pixels from 0 to 1")
parser.add_argument("--out", type=Path, help="directory to write pictures to")
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
adversary = PGD(ball, steps=20, loss="margin")
for i, j in ((0, 10), (10, len(found)), (0, len(found))):
    model = found[i:j]
    useful, robust = features.usefulness(model, new, truth), features.robustness(model, new, truth, adversary)
    print(f"{i:4d} to {j - 1:4d}   {useful.accuracy:8.1%}   {robust.accuracy:12.1%}")

# What one image looks like to the same features of other architectures.
preprocessing = Standardize.fit(dataset.train.images)
some = slice(0, min(n, 300))
shown = (0, 1, 2, 5, 10, 20)
decomposed = {}
for name, architecture in {"fc1": ntkit.fc(1), "fc3": ntkit.fc(3), "convnet1": ntkit.convnet(1)}.items():
    one = of_pixels(ntkit.ntk(architecture), preprocessing)
    decomposed[name] = features.eigenfeatures(one, x[some], one_hot(labels[some], dataset.num_classes), top=30)
values = {name: one.eigenfunctions(new) for name, one in decomposed.items()}
print("\nsimilarity of features of the same number, and with the most similar one")
for first, second in itertools.combinations(values, 2):
    cosines = features.similarity(values[first], values[second])
    row = "  ".join(f"{i}: {cosines[i, i]:.2f} ({cosines[i].max():.2f})" for i in shown)
    print(f"{first:>8} and {second:8}   {row}")

if options.out is not None:
    options.out.mkdir(parents=True, exist_ok=True)
    plot.save(
        plot.features(swept, title=f"{dataset.name}, {len(found)} features of fc(2)"), options.out / "features.png"
    )
    pictures, bands = [new[:1]], [0]
    for band, one in enumerate(decomposed.values(), start=1):
        for i in shown:
            gradient = np.asarray(features.gradient_images(one[i], new[:1], truth[:1]))
            pictures.append(0.5 + 0.5 * gradient / (np.abs(gradient).max() or 1))
            bands.append(band)
    grid = plot.image_grid(
        np.concatenate(pictures),
        classes=np.array(bands),
        class_names=["image", *decomposed],
        columns=len(shown),
        scale=(0.0, 1.0),
        title="Gradients of features " + ", ".join(map(str, shown)),
    )
    plot.save(grid, options.out / "gradients.png")
    print(f"written to {options.out}")
