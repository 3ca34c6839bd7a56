"""KIP: kernel inducing points, Algorithm 1 of Nguyen, Chen, Lee 2021 (arXiv:2011.00050)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from ntkit import regression
from ntkit._checks import check_number, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.distill.learner import Learner
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel


@pytree_dataclass(eq=False)
class KIP(Learner):
    """Kernel ridge regression on the support set, differentiated through its solution.

    **Fields:**

    - `kernel`: the kernel, or a family of kernels of which each step samples one.
    - `ridge`: relative to tr(K)/n, of the support set's Gram matrix.

    **Raises:** `ValueError` that names the field.
    """

    kernel: Kernel | Sequence[Kernel]
    ridge: float = static_field(default=1e-6)

    def __post_init__(self) -> None:
        family = (self.kernel,) if isinstance(self.kernel, Kernel) else self.kernel
        if not isinstance(family, list | tuple) or not family or not all(isinstance(each, Kernel) for each in family):
            raise wrong("kernel", self.kernel, "an ntkit.Kernel such as ntkit.ntk(ntkit.fc(1)), or several in a list")
        for each in family:
            check_kernel("kernel", each)
        object.__setattr__(self, "ridge", check_number("ridge", self.ridge, least=0))

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return (self.kernel,) if isinstance(self.kernel, Kernel) else tuple(self.kernel)

    @property
    def variants(self) -> int:
        return len(self.kernels)

    def kept(self, kernels: tuple[Kernel, ...]) -> Kernel | tuple[Kernel, ...]:
        return kernels[0] if isinstance(self.kernel, Kernel) else kernels

    def fitted(
        self, kernels: tuple[Kernel, ...], images: Array, targets: Array, carried: Any, variant: int
    ) -> regression.Predictor | regression.FeaturePredictor:
        return regression.fit(kernels[variant], images, targets, self.ridge)
