"""Adversarial examples made without training a network, and how well they fool networks that were trained.

Tsilivis & Kempe 2022 (arXiv:2210.05577): the infinitely wide network, trained for a given time, has a closed form, and
so have its gradient and its adversarial examples. Networks of several widths, and one of another architecture, then
classify them after few and many steps, beside noise of the same size and examples that were crafted on each network
itself (white box).

    python examples/ntk_attack.py [--radius 0.15] [--plot transfer.png] [--smoke]
"""

import argparse

import jax
import numpy as np

import ntkit
from ntkit import attacks, data, plot
from ntkit.data import accuracy
from ntkit.networks import random_noise, sgd, transfer, transfer_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--radius", type=float, default=0.15, help="of the l∞ ball, in pixels from 0 to 1 (default 0.15)")
parser.add_argument("--plot", help="picture to write")
parser.add_argument("--smoke", action="store_true", help="small networks and few images, to see that it runs")
options = parser.parse_args()

digits = ntkit.data.load("digits")
n, m, seeds = (100, 20, 1) if options.smoke else (len(digits.train), len(digits.test), 3)
images, targets = digits.train.images[:n], ntkit.data.one_hot(digits.train.labels[:n], 10)
x, labels = digits.test.images[:m], digits.test.labels[:m]
preprocess = ntkit.data.Standardize.fit(images)
ball = attacks.Linf(options.radius)
adversary = attacks.PGD(ball, steps=20, stop_early=False)
key_attack, key_noise, key_networks = jax.random.split(jax.random.key(0), 3)

# Gradient descent with a small learning rate on ½ ‖f(x) − y‖² is at time steps · rate · outputs of the flow.
rate, steps = 0.2, (5, 10) if options.smoke else (50, 500)
kernel = ntkit.ntk(ntkit.fc(1))
examples = {"noise": random_noise(x, ball, key=key_noise)}
for step in steps:
    predictor = ntkit.regression.flow(kernel, preprocess.transform(images), targets, time=step * rate * 10)
    model = data.of_pixels(predictor, preprocess)  # the ball is one of pixels, whatever the kernel is fed
    examples[f"kernel at {step}"] = crafted = adversary(model, x, labels, key=key_attack)
    clean, robust = accuracy(model, x, labels), accuracy(model, crafted, labels)
    print(f"infinitely wide, after {step} steps: {clean:.1%} clean, {robust:.1%} on the examples crafted on it")

networks = [(ntkit.fc(1), width) for width in ((16,) if options.smoke else (64, 1024))]
networks += [(ntkit.conv(1), 8 if options.smoke else 64)]  # whose kernel is another one
rows = []
for architecture, width in networks:
    found = [
        transfer(
            data.of_pixels(architecture.flax(num_outputs=10, width=width), preprocess),
            images,
            targets,
            x,
            labels,
            examples=examples,
            adversaries={"white box": adversary},
            steps=steps,
            key=jax.random.fold_in(key_networks, seed),
            optimizer=sgd(rate),
            centred=True,
        )
        for seed in range(seeds)
    ]
    rows += transfer_rows(f"{architecture.name}, width {width}", found)

kinds = list(rows[0]["accuracy"])
print(f"\n{'accuracy in %':16s} steps   " + "   ".join(f"{kind:>13s}" for kind in kinds))
for row in rows:
    cells = (f"{100 * np.mean(values):6.1f} ± {100 * np.std(values):4.1f}" for values in row["accuracy"].values())
    print(f"{row['network']:16s} {row['steps']:5d}   " + "   ".join(cells))
if options.plot:
    plot.save(plot.transfer(rows), options.plot)
    print(f"drawn in {options.plot}")
