"""Why true labels are learned faster than random ones: they lie along the top of the kernel's spectrum.

Train one wide network by gradient descent on the digits with their own labels, and with random ones, and compare what
is left of each eigencomponent of the labels with what its tangent kernel predicts. Arora et al. 2019
(arXiv:1901.08584), figure 1.

    python examples/training_speed.py [--width 2048] [--images 1000] [--plot speed.png] [--smoke]
"""

import argparse

import jax
import numpy as np

import ntkit
from ntkit import networks, plot

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--width", type=int, default=2048, help="of the hidden layer (default 2048)")
parser.add_argument("--images", type=int, default=1000, help="to train on (default 1000)")
parser.add_argument("--plot", help="picture to write")
parser.add_argument("--smoke", action="store_true", help="a small network, to see that it runs")
options = parser.parse_args()

n, width = (60, 64) if options.smoke else (options.images, options.width)
at = (0, 1, 3, 10) if options.smoke else (0, 1, 3, 10, 30, 100, 300, 1000, 3000)
digits = ntkit.data.load("digits")
images, labels = digits.train.images[:n], digits.train.labels[:n]
network = ntkit.fc(1).flax(num_outputs=10, width=width)
module = ntkit.data.of_pixels(network, ntkit.data.Standardize.fit(images))
key_network, key_labels = jax.random.split(jax.random.key(0))

found = {}
for name, given in (("true labels", labels), ("random labels", jax.random.permutation(key_labels, labels))):
    found[name] = one = networks.convergence(
        module,
        images,
        ntkit.data.one_hot(np.asarray(given), 10),
        key=key_network,
        at=at,
    )
    print(f"{name}: {one.shares[:10].sum():.1%} of their squares along the first 10 eigenvectors of {n}")
    print("   step   left of ‖y‖   predicted")
    for step, measured, predicted in zip(at, one.left(one.measured), one.left(one.predicted), strict=True):
        print(f"  {step:5d}   {measured:11.1%}   {predicted:9.1%}")
if options.plot:
    plot.save(plot.convergence(found, title=f"digits, one hidden layer of {width:,} units"), options.plot)
    print(f"drawn in {options.plot}")
