"""A training set on which networks learn nothing of use: poisoned through a kernel, every pixel changed a little.

Neural tangent generalization attacks (Yuan & Wu 2021). Networks that the attack never saw are trained on the digits as
they are, with random signs of the same size added, and poisoned, and are tested on clean digits.

    python examples/poison.py [--smoke] [--radius 0.2]
"""

import argparse

import jax

import ntkit
from ntkit import attacks, networks
from ntkit.data import accuracy
from ntkit.networks.transferring import random_noise

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="few steps and one network, to see that it runs")
parser.add_argument("--radius", type=float, default=0.2, help="of the l∞ ball, in pixels from 0 to 1")
options = parser.parse_args()

digits = ntkit.data.load("digits")
images, labels = digits.train.images, digits.train.labels
targets = ntkit.data.one_hot(labels, 10)
ball = attacks.Linf(options.radius)
key_attack, key_noise, key_train = jax.random.split(jax.random.key(0), 3)

poisoned = ntkit.poison.ntga(
    ntkit.ntk(ntkit.fc(2)),
    images,
    labels,
    ball,
    key=key_attack,
    time=512.0,
    steps=2 if options.smoke else 10,
    session=ntkit.runs.Session(show_progress=True),
)
training_sets = {"as they are": images, "noise": random_noise(images, ball, key=key_noise), "poisoned": poisoned}

print("network             trained on     accuracy there   on clean test digits")
for architecture, width in [(ntkit.fc(1), 256)] if options.smoke else [(ntkit.fc(1), 256), (ntkit.conv(2), 32)]:
    module = architecture.flax(num_outputs=10, width=width)
    for name, x in training_sets.items():
        steps = 20 if options.smoke else 300
        network = networks.train(
            *(module, x, targets),
            key=key_train,
            steps=steps,
            batch_size=128,
            optimizer=networks.adam(0.01, decay_over=steps),
            loss="cross_entropy",
        )
        shares = accuracy(network, x, labels), accuracy(network, digits.test.images, digits.test.labels)
        print("{:8}  {:4d} wide  {:12}  {:15.1%}  {:21.1%}".format(architecture.name, width, name, *shares))
