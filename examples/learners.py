"""Distil digits with three learners, and look at the sets through kernels and a network that none of them has met.

python examples/learners.py [--smoke]
"""

import argparse

import jax

import ntkit
from ntkit import data, distill, networks, regression

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
options = parser.parse_args()
steps = 5 if options.smoke else 500

digits = data.load("digits")
pixels = data.Standardize.fit(digits.train.images)
train, test = pixels.transform(digits.train.images), pixels.transform(digits.test.images)
architecture = ntkit.fc(1)
learners = {
    "real images": (distill.KIP(ntkit.ntk(architecture)), 0),
    "KIP": (distill.KIP(ntkit.ntk(architecture)), steps),
    "RFAD": (distill.RFAD(architecture, width=512), steps),
    "FRePo": (distill.FRePo(architecture.flax(10, width=512), ridge=1e-2), steps),
}
judges = {"NTK": ntkit.ntk(ntkit.fc(2)), "NNGP": ntkit.nngp(ntkit.fc(2))}

print(f"{'ten images':12s}  {'   '.join(f'{name:>6s}' for name in (*judges, 'network'))}")
for name, (learner, count) in learners.items():
    made = distill.distill(
        learner,
        train,
        digits.train.labels,
        per_class=1,
        steps=count,
        key=jax.random.key(0),
        optimizer=networks.adabelief(0.02, decay_over=steps),
        targets=distill.Targets(batch=500),
    )
    models = [regression.fit(kernel, made.images, made.labels, 1e-3) for kernel in judges.values()]
    module = ntkit.fc(2).flax(10, width=512)
    adam = networks.adam(0.01, decay_over=steps)
    key = jax.random.key(1)
    models.append(networks.train(module, made.images, made.labels, key=key, steps=steps, optimizer=adam, centred=True))
    accuracies = [data.accuracy(model, test, digits.test.labels) for model in models]
    print(f"{name:12s}  {'   '.join(f'{accuracy:6.1%}' for accuracy in accuracies)}")
