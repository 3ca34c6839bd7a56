"""How a kernel moves: metrics of a sequence of Gram matrices, such as a network's tangent kernels as it trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Float

from ntkit._checks import (
    check_choice,
    check_finite,
    check_integer,
    check_integers,
    check_named,
    check_sequence,
    check_text,
    wrong,
)
from ntkit.features import alignment, concentration, effective_rank
from ntkit.runs import Result, Share

if TYPE_CHECKING:
    from ntkit.networks.snapshots import Linearization
    from ntkit.networks.training import TrainedNetwork

Part: TypeAlias = Literal["all", "top", "bottom"]

PARTS: tuple[Part, ...] = ("all", "top", "bottom")
# Tsilivis & Kempe 2022, section 5, call the span of as many eigenvectors the top of the kernel.
TOP = 20
CAPTIONS = {
    "metrics": "Metrics (moved: distance from the first kernel; speed: per step; top: share of Σ λ²)",
    "accuracy": "Accuracy; linearized: at that step, and trained from there to the end",
    "rotation": "Rotation of the kernel and its parts, in degrees, and its norm",
}


def kernel_distance(first: Float[ArrayLike, "n n"], second: Float[ArrayLike, "n n"]) -> float:
    """Give d(Θ, Θ') = 1 − Tr(Θ Θ'ᵀ) / (‖Θ‖ ‖Θ'‖), one minus the cosine of the angle between two Gram matrices.

    0 for kernels that are the same up to scale (Fort et al. 2020, arXiv:2010.15110).

    **Raises:** `ValueError` that names the argument.
    """
    grams = _checked("first", [first], None), _checked("second", [second], None)
    if grams[0].shape != grams[1].shape:
        raise ValueError(f"second: got shape {grams[1].shape[1:]}, expected {grams[0].shape[1:]} as first")
    for name, gram in zip(("first", "second"), grams, strict=True):
        if not gram.any():
            raise ValueError(f"{name}: got zeros alone, expected a distance to be defined")
    return float(_distances(np.concatenate(grams))[0, 1])


class Rotation(NamedTuple):
    """A kernel's way in polar coordinates; see [`Dynamics.rotation`][]."""

    radius: Float[np.ndarray, " steps"]
    angle: Float[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dynamics:
    """A kernel on a fixed sample, at several steps of a training.

    [`kernel_dynamics`][ntkit.networks.kernel_dynamics] makes it.

    Θ0 is the first of the kernels, Θf the last. The metrics are those of Tsilivis & Kempe 2022 (arXiv:2210.05577,
    section 5), in float64.

    **Fields:** `steps`: of training, in rising order. `grams`: a Gram matrix (n, n) for each. `networks`: the network
    as it was at each step, if they are known.

    **Raises:** `ValueError` that names the field.
    """

    steps: tuple[int, ...]
    grams: Float[np.ndarray, "steps n n"]
    networks: tuple[TrainedNetwork, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_integers("steps", self.steps, 0))
        if any(one >= two for one, two in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps: got {self.steps}, expected one or more in rising order")
        object.__setattr__(self, "grams", _checked("grams", self.grams, len(self.steps)))
        if not isinstance(self.networks, tuple) or len(self.networks) not in (0, len(self.steps)):
            raise wrong("networks", self.networks, f"a tuple of {len(self.steps)}, one for each step, or an empty one")

    @functools.cached_property
    def distances(self) -> Float[np.ndarray, "steps steps"]:
        """[`kernel_distance`][] between the kernels at all pairs of steps."""
        return _distances(self.grams)

    @property
    def velocity(self) -> Float[np.ndarray, " steps-1"]:
        """Distance between consecutive kernels, over the steps between them."""
        return np.diagonal(self.distances, 1) / np.diff(self.steps)

    @property
    def norm(self) -> Float[np.ndarray, " steps"]:
        """Frobenius norms ‖Θt‖."""
        return np.linalg.norm(self.grams, axis=(1, 2))

    @functools.cached_property
    def eigenvalues(self) -> Float[np.ndarray, "steps n"]:
        """Eigenvalues at each step, the largest first."""
        return self._spectra[0]

    @property
    def effective_rank(self) -> Float[np.ndarray, " steps"]:
        """[`ntkit.features.effective_rank`][] at each step, from 1 to n."""
        return np.array([effective_rank(values) for values in self.eigenvalues])

    def concentration(self, top: int) -> Float[np.ndarray, " steps"]:
        """Give the share of Σ λ² that the largest `top` eigenvalues have, at each step."""
        return np.array([concentration(values, top) for values in self.eigenvalues])

    def alignment(self, y: Float[ArrayLike, "n outputs"], *, centred: bool = False) -> Float[np.ndarray, " steps"]:
        """Give [`ntkit.features.alignment`][] with the targets of the sample, at each step."""
        return np.array([alignment(gram, y, centred=centred) for gram in self.grams])

    def part(self, part: Part = "all", *, top: int = TOP) -> Float[np.ndarray, "steps n n"]:
        """Give a part of Θt = Σ λ v vᵀ: that of the `top` largest eigenvalues, that of the others, or all of it."""
        check_choice("part", part, PARTS)
        if part == "all":
            return self.grams
        n = self.grams.shape[1]
        top = check_integer("top", top, 1, n - 1)
        values, vectors = self._spectra
        chosen = slice(None, top) if part == "top" else slice(top, None)
        vectors = vectors[:, :, chosen]
        return np.asarray((vectors * values[:, None, chosen]) @ vectors.transpose(0, 2, 1))

    def rotation(self, part: Part = "all", *, top: int = TOP) -> Rotation:
        """Give the way of the kernel, or of a part of it, from Θ0 to Θf in polar coordinates.

        **Arguments:** `part`, `top`: as for `part`.

        **Returns:** at each step the `radius` ‖Θt − Θ0‖ / ‖Θf − Θ0‖, from 0 to 1 at the end (0 throughout where
        Θf = Θ0), and the `angle` arccos(1 − d(Θt, Θ0)), in radians.
        """
        grams = self.part(part, top=top)
        moved = np.linalg.norm(grams - grams[0], axis=(1, 2))
        radius = moved / moved[-1] if moved[-1] > 0 else np.zeros_like(moved)
        # arccos(1 − d), without what arccos loses near 1.
        angle = 2 * np.arcsin(np.sqrt(np.minimum(_distances(grams)[0] / 2, 1)))
        return Rotation(radius, angle)

    def summary(
        self, y: Float[ArrayLike, "n outputs"] | None = None, *, top: int = TOP, shares: Sequence[int] = (10, 20)
    ) -> dict[str, Any]:
        """Give all metrics in JSON's types, as results are written and `ntkit.plot.dynamics` draws them.

        **Arguments:** `y`: targets of the sample, for the alignment. `top`: eigenvectors of the top part. `shares`:
        numbers of eigenvalues whose concentration is given, where there are as many.
        """
        n = self.grams.shape[1]
        top = check_integer("top", top, 1, n - 1)
        shares = check_integers("shares", shares)
        found = {
            "steps": list(self.steps),
            "distances": self.distances.tolist(),
            "velocity": self.velocity.tolist(),
            "top": top,
            "rotation": {},
            "concentration": {str(count): self.concentration(count).tolist() for count in shares if count <= n},
            "effective_rank": self.effective_rank.tolist(),
            "norm": self.norm.tolist(),
        }
        for part in PARTS:
            radius, angle = self.rotation(part, top=top)
            found["rotation"][part] = {"radius": radius.tolist(), "angle": angle.tolist()}
        return found if y is None else found | {"alignment": self.alignment(y).tolist()}

    @functools.cached_property
    def _spectra(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (steps, n) and eigenvectors (steps, n, n) as columns, of the largest first."""
        values, vectors = np.linalg.eigh((self.grams + self.grams.transpose(0, 2, 1)) / 2)
        return values[:, ::-1], vectors[:, :, ::-1]


def dynamics_result(
    found: Mapping[str, Mapping[str, Any]],
    linearized: Mapping[str, Sequence[Linearization]] | None = None,
    *,
    title: str = "Kernel dynamics",
) -> Result:
    """Put trainings side by side, such as standard and adversarial, a row for each of their steps.

    **Arguments:** `found`: by the name of each training, what `Dynamics.summary` gives, with the targets of the sample,
    and under `"accuracy"` one value for each step by the kind of images. `linearized`: by the same names, what
    [`ntkit.networks.linearized_from`][] gives.

    **Returns:** a `Result`: the tables `metrics`, `accuracy` and `rotation`, in degrees.

    **Raises:** `ValueError` that names the argument.
    """
    expected = "summaries of kernel dynamics with alignment and accuracy, by the names of the trainings"
    wanted = {"steps", "distances", "velocity", "concentration", "effective_rank", "alignment", "accuracy", "rotation"}
    for metrics in check_named("found", found, expected).values():
        if not (isinstance(metrics, Mapping) and wanted <= metrics.keys()):
            raise wrong("found", found, expected)
        for name, values in check_named("accuracy", metrics["accuracy"], "values by the kind of images").items():
            if len(check_sequence("accuracy", values, "a value for each step")) != len(metrics["steps"]):
                raise ValueError(f"accuracy: got {len(values)} of {name!r}, expected {len(metrics['steps'])} as steps")
    linearized = {} if linearized is None else check_named("linearized", linearized, "results by names of trainings")
    check_text("title", title)
    summary: dict[str, Any] = {}
    tables: dict[str, list[dict[str, Any]]] = {"metrics": [], "accuracy": [], "rotation": []}
    for kind, metrics in found.items():
        summary[f"{kind}: moved, d(Θf, Θ0)"] = metrics["distances"][0][-1]
        summary |= {f"{kind}: {name} accuracy": Share(values[-1]) for name, values in metrics["accuracy"].items()}
        ends = {row["step"]: row["linearized"] for row in linearized.get(kind, ())}
        for i, step in enumerate(metrics["steps"]):
            row = {"training": kind, "step": step}
            tables["metrics"].append(
                {**row, "moved": metrics["distances"][0][i], "speed": metrics["velocity"][i - 1] if i else None}
                | {f"top {count}": Share(shares[i]) for count, shares in metrics["concentration"].items()}
                | {"rank": metrics["effective_rank"][i], "aligned": metrics["alignment"][i]}
            )
            tables["accuracy"].append(
                row
                | {name: Share(values[i]) for name, values in metrics["accuracy"].items()}
                | {f"linearized: {name}": Share(value) for name, value in ends.get(step, {}).items()}
            )
            tables["rotation"].append(
                row
                | {
                    f"{part}: {name}": float(np.degrees(way[name][i])) if name == "angle" else way[name][i]
                    for part, way in metrics["rotation"].items()
                    for name in ("radius", "angle")
                }
                | {"norm": metrics["norm"][i]}
            )
    return Result(title, summary, tables, captions=CAPTIONS)


def _distances(grams: np.ndarray) -> np.ndarray:
    rows = grams.reshape(len(grams), -1)
    sizes = np.linalg.norm(rows, axis=1)
    if not np.all(sizes > 0):
        raise ValueError("grams: got one that is zero, expected a distance to be defined")
    rows = rows / sizes[:, None]
    # Half the square between unit vectors is the same as one minus their cosine, and exact where they are near.
    return np.array([0.5 * np.sum((rows - row) ** 2, axis=1) for row in rows])


def _checked(name: str, grams: Any, count: int | None) -> np.ndarray:
    array = check_finite(name, grams)
    expected = array.ndim == 3 and array.shape[1] == array.shape[2] > 0
    if not expected or (count is not None and len(array) != count):
        wanted = "a square" if count is None else f"({count}, n, n), a square for each step"
        raise ValueError(f"{name}: got shape {array.shape[1:] if count is None else array.shape}, expected {wanted}")
    return array
