"""Learning-rate schedules; knows torch only."""

from lightning_novograd.lr_scheduler.deeplearningexamples import WarmupHoldAnnealExponential
from lightning_novograd.lr_scheduler.nemo import (
    CosineAnnealing,
    InverseSquareRootAnnealing,
    NoamAnnealing,
    NoamHoldAnnealing,
    PolynomialDecayAnnealing,
    PolynomialHoldDecayAnnealing,
    SquareAnnealing,
    SquareRootAnnealing,
    T5InverseSquareRootAnnealing,
    WarmupAnnealing,
    WarmupHoldAnnealLinear,
    WarmupHoldAnnealOneMinusSquareRoot,
    WarmupHoldPolicy,
    WarmupPolicy,
)
from lightning_novograd.lr_scheduler.openseq2seq import (
    CosineDecay,
    ExpDecay,
    InvPolyDecay,
    PiecewiseConstant,
    PolyDecay,
    TransformerPolicy,
)

__all__ = [
    "CosineAnnealing",
    "CosineDecay",
    "ExpDecay",
    "InvPolyDecay",
    "InverseSquareRootAnnealing",
    "NoamAnnealing",
    "NoamHoldAnnealing",
    "PiecewiseConstant",
    "PolyDecay",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
    "SquareAnnealing",
    "SquareRootAnnealing",
    "T5InverseSquareRootAnnealing",
    "TransformerPolicy",
    "WarmupAnnealing",
    "WarmupHoldAnnealExponential",
    "WarmupHoldAnnealLinear",
    "WarmupHoldAnnealOneMinusSquareRoot",
    "WarmupHoldPolicy",
    "WarmupPolicy",
]
