"""How a network's tangent kernel moves in standard and in adversarial training, and when it is learned.

Train one network on the digits twice, without and with an adversary, take its tangent kernel on a fixed sample at
several steps, and follow it: how far and how fast it turns, how its spectrum concentrates. Then linearize the network
at each of these steps, and train the linearization instead from there on.

    python examples/kernel_dynamics.py [--radius 0.15] [--plot dynamics.png] [--smoke]
"""

import argparse

import jax
import numpy as np

import ntkit
from ntkit import attacks, networks, plot

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--radius", type=float, default=0.15, help="of the l∞ ball, in pixels from 0 to 1 (default 0.15)")
parser.add_argument("--plot", help="picture to write")
parser.add_argument("--smoke", action="store_true", help="a small network and few steps, to see that it runs")
options = parser.parse_args()

digits = ntkit.data.load("digits")
n, m, size, width = (100, 20, 30, 16) if options.smoke else (len(digits.train), len(digits.test), 200, 256)
at = (0, 2, 6) if options.smoke else (0, 10, 30, 100, 300, 1000)
images, targets = digits.train.images[:n], np.asarray(ntkit.data.one_hot(digits.train.labels[:n], 10))
x, labels = digits.test.images[:m], digits.test.labels[:m]
network = ntkit.fc(2).flax(num_outputs=10, width=width)
module = ntkit.data.of_pixels(network, ntkit.data.Standardize.fit(images))
adversary = attacks.PGD(attacks.Linf(options.radius), steps=10, stop_early=False)
key_train, key_linearize = jax.random.split(jax.random.key(0))
training = {
    "loss": "cross_entropy",
    "optimizer": networks.sgd(1.0),
    "batch_size": 128,
}

found = {}
for name, attacked_by in (("standard", None), ("adversarial", adversary)):
    dynamics = networks.kernel_dynamics(
        module, images, targets, sample=images[:size], at=at, key=key_train, adversary=attacked_by, **training
    )
    found[name] = dynamics.summary(targets[:size])
    print(f"{name}\n  step   distance   angle   of the bottom   top 10   effective rank")
    columns = zip(
        dynamics.steps,
        dynamics.distances[0],
        np.degrees(dynamics.rotation().angle),
        np.degrees(dynamics.rotation("bottom").angle),
        dynamics.concentration(10),
        dynamics.effective_rank,
        strict=True,
    )
    for step, distance, angle, of_bottom, share, rank in columns:
        print(f"{step:6d}   {distance:.6f}   {angle:4.1f}°           {of_bottom:4.1f}°   {share:.2%}   {rank:14.1f}")
    rows = networks.linearized_from(
        dict(zip(dynamics.steps, dynamics.networks, strict=True)),
        images,
        targets,
        x,
        labels,
        key=key_linearize,
        adversaries={"pgd": attacks.PGD(adversary.ball, steps=20)},
        adversary=attacked_by,
        **training,
    )
    for row in rows:
        linear, whole = (
            ", ".join(f"{value:.1%} {of}" for of, value in row[one].items()) for one in ("linearized", "network")
        )
        print(f"linearized at step {row['step']}, after {at[-1]}: {linear}; the network: {whole}")
if options.plot:
    plot.save(plot.dynamics(found), options.plot)
    print(f"drawn in {options.plot}")
