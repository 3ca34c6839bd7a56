"""Adversarial examples: attacks on any model that maps images to logits, and what is left of its accuracy."""

from ntkit.attacks.adversary import Adversary, Preprocessed
from ntkit.attacks.apgd import apgd
from ntkit.attacks.autoattack import autoattack
from ntkit.attacks.balls import L2, Ball, Linf
from ntkit.attacks.evaluate import Evaluation, MaskedGradientsWarning, evaluate
from ntkit.attacks.fab import fab
from ntkit.attacks.gradient import fgsm, pgd
from ntkit.attacks.square import square

__all__ = [
    "L2",
    "Adversary",
    "Ball",
    "Evaluation",
    "Linf",
    "MaskedGradientsWarning",
    "Preprocessed",
    "apgd",
    "autoattack",
    "evaluate",
    "fab",
    "fgsm",
    "pgd",
    "square",
]
