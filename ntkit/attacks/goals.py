"""What an attack wants a model to say of each image: another class than the true one, or one that is given."""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int

from ntkit._pytrees import pytree_dataclass
from ntkit.attacks.losses import Loss, fooled, likeliest, margin


@pytree_dataclass
class Goal:
    """What each of n outputs should name. A pytree.

    **Fields:** `classes` (n,): the true classes, from 0. `targets` (n,): the classes to be named instead; `None`: any
    other than the true one.
    """

    classes: Int[Array, " n"]
    targets: Int[Array, " n"] | None = None

    def reached(self, outputs: Float[Array, "n outputs"]) -> Bool[Array, " n"]:
        """Whether each output names what it should. Ties go to the first class, as in `argmax`."""
        return fooled(outputs, self.classes) if self.targets is None else ~fooled(outputs, self.targets)

    def margin(self, outputs: Float[Array, "n outputs"]) -> Float[Array, " n"]:
        """Give by how much the logit of what should be named is above the others: positive where the goal is reached.

        Carlini & Wagner 2017 (arXiv:1608.04644), f₆.
        """
        return margin(outputs, self.classes) if self.targets is None else -margin(outputs, self.targets)

    def loss(self, loss: Loss, outputs: Float[Array, "n outputs"]) -> Float[Array, " n"]:
        """Give what to climb: the loss of the true classes, or the negative one of the targets."""
        return loss(outputs, self.classes) if self.targets is None else -loss(outputs, self.targets)

    def rivals(self, outputs: Float[Array, "n outputs"]) -> Int[Array, " n"]:
        """Give the classes to beat: the true ones, or of the classes beside the targets the likeliest."""
        return self.classes if self.targets is None else likeliest(outputs, self.targets)[:, 0]

    def farther(self, loss: Loss | None, before: Array, after: Array) -> Bool[Array, " n"]:
        """Whether outputs `after` an attack are farther from the goal than those `before`: by the class, then the loss.

        Without a loss also where they are no nearer.
        """
        was, reached = self.reached(before), self.reached(after)
        if loss is None:
            return was | ~reached
        return (was & ~reached) | ((was == reached) & (self.loss(loss, before) > self.loss(loss, after)))
