"""How many dimensions distilled images fill, beside real ones.

Distil the digits with KIP, and with adv-KIP, and estimate the intrinsic dimension of the images by maximum likelihood,
for several numbers of neighbours, beside that of as many real images. (Estimates for one number of images compare; they
grow with it.)

    python examples/intrinsic_dimension.py [--per-class 10] [--radius 0.1] [--smoke]
"""

import argparse

import jax
import numpy as np
import optax

import ntkit
from ntkit import attacks, distill, features

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--per-class", type=int, default=10, help="images (default 10)")
parser.add_argument("--radius", type=float, default=0.1, help="of adv-KIP's l∞ ball (default 0.1)")
parser.add_argument("--seeds", type=int, default=3, help="of the choice of images (default 3)")
parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
options = parser.parse_args()

steps, seeds = (3, 1) if options.smoke else (500, options.seeds)
digits = ntkit.data.load("digits")
preprocessing = ntkit.data.Standardize.fit(digits.train.images)
adversary = attacks.PGD(attacks.Linf(options.radius), steps=10, stop_early=False)

found: dict[str, list[list[float]]] = {}
for seed in range(seeds):
    key = jax.random.key(seed)
    sets = {}
    for name, attacked_by in (("KIP", None), ("adv-KIP", adversary)):
        made = distill.distill(
            distill.KIP(ntkit.ntk(ntkit.fc(1))),
            digits.train.images,
            digits.train.labels,
            per_class=options.per_class,
            steps=steps,
            key=key,
            optimizer=optax.adam(0.02),
            targets=distill.Targets(batch=400, preprocessing=preprocessing),
            adversary=attacked_by,
        )
        sets[name] = preprocessing.inverse(made.images)
    sets["real"] = digits.train.choice(10 * options.per_class, key).images
    sets["all real"] = digits.train.images
    for name, images in sets.items():
        dimensions = features.intrinsic_dimension(np.asarray(images))
        found.setdefault(name, []).append(list(dimensions.values()))

print(f"{'neighbours':>20s} {3:>11d} {5:>11d} {10:>11d} {20:>11d}")
for name, values in found.items():
    cells = (f"{mean:5.1f} ± {std:3.1f}" for mean, std in zip(np.mean(values, 0), np.std(values, 0), strict=True))
    print(f"{name:>20s} {' '.join(cells)}")
