"""Adversarial examples made without training a network, and how well they fool networks that were trained.

The examples are crafted on kernel regression with the NTK (Tsilivis & Kempe 2022, arXiv:2210.05577). Networks of
several widths, after few and many steps, then classify them, beside examples that were crafted on each network itself
(white box) and random signs of the same size.

    python examples/ntk_attack.py [--smoke]
"""

import argparse

import jax
import jax.numpy as jnp

import ntkit
from ntkit import attacks
from ntkit.regression import accuracy

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="one small network, to see that it runs")
parser.add_argument("--radius", type=float, default=0.1, help="of the l∞ ball, in pixels from 0 to 1")
options = parser.parse_args()

digits = ntkit.data.load("digits")
images, targets = digits.train.images, ntkit.data.one_hot(digits.train.labels, 10)
x, labels = digits.test.images, digits.test.labels
ball = attacks.Linf(options.radius)
key_attack, key_noise, key_train = jax.random.split(jax.random.key(0), 3)

architecture = ntkit.fc(2)
model = ntkit.regression.fit(ntkit.ntk(architecture), images, targets)
crafted = attacks.pgd(model, x, labels, ball, key=key_attack)
noise = jnp.clip(x + ball.radius * jax.random.rademacher(key_noise, x.shape, x.dtype), 0, 1)
print(f"kernel: {accuracy(model, x, labels):.1%} clean, {accuracy(model, crafted, labels):.1%} under PGD in {ball}")

print("width   steps    clean   noise   crafted on the kernel   on itself")
for width in (64,) if options.smoke else (64, 512, 2048):
    for steps in (50,) if options.smoke else (50, 1000):
        module = architecture.flax(num_outputs=10, width=width)
        network = ntkit.networks.train(module, images, targets, key=key_train, steps=steps, learning_rate=1e-2)
        white_box = attacks.pgd(network, x, labels, ball, key=key_attack)
        shares = [accuracy(network, these, labels) for these in (x, noise, crafted, white_box)]
        print("{:5d}   {:5d}   {:6.1%}  {:6.1%}                  {:6.1%}      {:6.1%}".format(width, steps, *shares))
