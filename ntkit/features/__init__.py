"""What a kernel sees: the features of its eigenvectors, how useful and how robust they are, and its spectrum."""

from ntkit.features.dimension import CopiesWarning, intrinsic_dimension
from ntkit.features.eigen import EigenFeatures, RankWarning, eigenfeatures
from ntkit.features.images import gradient_images
from ntkit.features.measures import Measure, robustness, usefulness
from ntkit.features.parts import spectrum_parts
from ntkit.features.scoring import Scores, nngp_accuracy, scores
from ntkit.features.spectra import (
    SpectrumWarning,
    alignment,
    concentration,
    condition_number,
    effective_rank,
    label_shares,
    predicted_residuals,
    residuals,
    similarity,
)
from ntkit.features.sweeps import Sweep, sweep

__all__ = [
    "CopiesWarning",
    "EigenFeatures",
    "Measure",
    "RankWarning",
    "Scores",
    "SpectrumWarning",
    "Sweep",
    "alignment",
    "concentration",
    "condition_number",
    "effective_rank",
    "eigenfeatures",
    "gradient_images",
    "intrinsic_dimension",
    "label_shares",
    "nngp_accuracy",
    "predicted_residuals",
    "residuals",
    "robustness",
    "scores",
    "similarity",
    "spectrum_parts",
    "sweep",
    "usefulness",
]
