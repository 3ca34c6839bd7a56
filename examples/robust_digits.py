"""Digits distilled so that kernel regression on them resists PGD (adv-KIP), and what AutoAttack leaves of that.

Beside it stand the same distillation without an adversary (KIP), and a network that is trained on each of the two sets.

    python examples/robust_digits.py [--smoke]
"""

import argparse

import jax
import optax

import ntkit
from ntkit import attacks, data, distill, networks, regression

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="few steps and images, to see that it runs")
parser.add_argument("--radius", type=float, default=0.2, help="of the l∞ ball, in pixels from 0 to 1")
options = parser.parse_args()
steps, count = (5, 20) if options.smoke else (300, 360)

digits = ntkit.data.load("digits")
preprocessing = ntkit.data.Standardize.fit(digits.train.images)
x, labels = digits.test.images[:count], digits.test.labels[:count]
architecture = ntkit.fc(1)
kernel = ntkit.ntk(architecture)
ball = attacks.Linf(options.radius)
against = {
    "pgd": attacks.PGD(ball, steps=20),
    "autoattack": attacks.AutoAttack(ball, queries=100 if options.smoke else 5000),
}

print(f"{options.radius} in l∞                clean   PGD-20   AutoAttack")
for name, adversary in {
    "KIP": None,
    "adv-KIP": attacks.PGD(ball, steps=10, stop_early=False),
}.items():
    learned = distill.distill(
        distill.KIP(kernel),
        digits.train.images,
        digits.train.labels,
        per_class=1,
        steps=steps,
        targets=distill.Targets(batch=400, preprocessing=preprocessing),  # the ball is one of pixels
        optimizer=optax.adam(0.02),
        adversary=adversary,
        key=jax.random.key(0),
    )
    module = architecture.flax(num_outputs=10, width=512)
    models = {
        "kernel": regression.fit(kernel, learned.images, learned.labels),
        "network": networks.train(
            module, learned.images, learned.labels, key=jax.random.key(0), steps=10 * steps, centred=True
        ),
    }
    for what, model in models.items():
        found = attacks.evaluate(data.of_pixels(model, preprocessing), x, labels, against)
        robust = "   ".join(f"{found.robust[attack]:6.1%}" for attack in against)
        print(f"{what + ' on ' + name:20s}  {found.clean:6.1%}   {robust}", flush=True)
