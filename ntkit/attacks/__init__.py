"""Adversarial examples: attacks on any model that maps images to logits, and what is left of its accuracy."""

from ntkit.attacks.apgd import APGD
from ntkit.attacks.attack import Attack
from ntkit.attacks.autoattack import AutoAttack
from ntkit.attacks.balls import L2, Ball, Linf
from ntkit.attacks.evaluation import Evaluation, MaskedGradientsWarning, evaluate
from ntkit.attacks.fab import FAB
from ntkit.attacks.goals import Goal
from ntkit.attacks.pgd import FGSM, PGD
from ntkit.attacks.randomized import Randomized
from ntkit.attacks.shrinking import shrinking_loop
from ntkit.attacks.square import Square
from ntkit.attacks.task import Task, ascent

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "L2",
    "PGD",
    "Attack",
    "AutoAttack",
    "Ball",
    "Evaluation",
    "Goal",
    "Linf",
    "MaskedGradientsWarning",
    "Randomized",
    "Square",
    "Task",
    "ascent",
    "evaluate",
    "shrinking_loop",
]
