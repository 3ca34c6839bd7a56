"""What happens to a batch before a model learns from it: augmentation, an attack, preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ntkit._checks import changed, check_callable
from ntkit._pytrees import as_pytree, pytree_dataclass, static, static_field
from ntkit.attacks.attack import Attack
from ntkit.data import Preprocessing, of_pixels
from ntkit.data.preprocess import check_preprocessing

Augment: TypeAlias = Callable[[Array, Array], Array]
Adversary: TypeAlias = Callable[..., Array]


@pytree_dataclass
class Pipeline:
    """Augment, attack, preprocess: in this order, so that a ball is one of pixels whatever the model is fed. A pytree.

    **Fields:** `adversary`, `preprocessing`: pytrees, or `None`. `augment`: static, or `None`.
    """

    adversary: Any = None
    preprocessing: Preprocessing | None = None
    augment: Augment | None = static_field(default=None)

    @classmethod
    def of(
        cls,
        augment: Augment | None,
        adversary: Adversary | None,
        preprocessing: Preprocessing | None,
        images: np.ndarray,
    ) -> Pipeline:
        """Check what a user gave, for images of pixels."""
        for name, function in (("augment", augment), ("adversary", adversary)):
            if function is not None:
                check_callable(name, function, "a function, or None")
        if isinstance(adversary, Attack):
            adversary.check_pixels(images)
        if preprocessing is not None:
            check_preprocessing("preprocessing", preprocessing, images.shape[1:])
        return cls(
            None if adversary is None else as_pytree(adversary),
            preprocessing,
            None if augment is None else static(augment),
        )

    def augmented(self, key: Array, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Give augmented images."""
        return x if self.augment is None else changed("augment", self.augment, x, key, x)

    def attacked(
        self, model: Callable[[], Any], x: Float[Array, "n ..."], labels: Int[Array, " n"], key: Array
    ) -> Float[Array, "n ..."]:
        """Give attacked and preprocessed images. `model()`: what is attacked, a model of preprocessed images."""
        if self.adversary is not None:
            attacked = model()
            if self.preprocessing is not None:
                attacked = of_pixels(attacked, self.preprocessing)
            x = lax.stop_gradient(changed("adversary", self.adversary, x, attacked, x, labels, key=key))
        return x if self.preprocessing is None else self.preprocessing.transform(x)
