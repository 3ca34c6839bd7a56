"""What attacks leave of models' accuracy: PGD, and AutoAttack beside it, as cells of a table."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

from ntkit import attacks
from ntkit._checks import check_callable, check_instance, check_sequence, wrong
from ntkit.attacks import PGD, AutoAttack, Ball, MaskedGradientsWarning
from ntkit.attacks.balls import check_ball
from ntkit.attacks.problem import Model
from ntkit.data import Preprocessing, Split, of_pixels
from ntkit.data.preprocess import check_preprocessing
from ntkit.runs import Share

# Croce & Hein 2020 evaluate with PGD of as many steps before they show what AutoAttack leaves of it.
PGD_STEPS = 20


@dataclasses.dataclass(frozen=True)
class UnderAttack:
    """How models are attacked.

    **Fields:**

    - `ball`: an [`ntkit.attacks.Linf`][] or [`L2`][ntkit.attacks.L2], of pixels.
    - `test`: images of pixels, and their classes.
    - `preprocessing`: from pixels to what the models see; `None` for models of pixels.

    **Raises:** `ValueError` that names the field.
    """

    ball: Ball
    test: Split
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        check_ball("ball", self.ball)
        check_instance("test", self.test, Split, "an ntkit.data.Split")
        self.ball.check_pixels("test", self.test.images)
        if self.preprocessing is not None:
            check_preprocessing("preprocessing", self.preprocessing, self.test.images.shape[1:])

    def cells(self, models: Sequence[Model]) -> dict[str, Share | str]:
        """Give accuracies on these images, of several models as one `Share`, and whether gradients are masked.

        **Raises:** `ValueError` that names the argument, or what is wrong with a model.
        """
        if not check_sequence("models", models, "one model or more"):
            raise wrong("models", models, "one model or more")
        for model in models:
            check_callable("models", model, "models, functions of images")
        against = {f"PGD-{PGD_STEPS}": PGD(self.ball, steps=PGD_STEPS), "AutoAttack": AutoAttack(self.ball)}
        found = []
        for model in models:
            attacked = model if self.preprocessing is None else of_pixels(model, self.preprocessing)
            with warnings.catch_warnings():
                # The table says it.
                warnings.simplefilter("ignore", MaskedGradientsWarning)
                found.append(attacks.evaluate(attacked, self.test.images, self.test.labels, against))
        cells: dict[str, Share | str] = {"clean": Share(*(one.clean for one in found))}
        cells |= {name: Share(*(one.robust[name] for one in found)) for name in against}
        return cells | {"masked gradients": "signs of them" if any(one.signs for one in found) else ""}
