"""Activation functions that change while a network trains, and how to put them into one."""

from .activation import Activation, Channels, Options, Scheduled, fuse, penalty, set_progress
from .folding import fold
from .functions.aconc import ACONC, aconc
from .functions.aglu import AGLU, APA, aglu, apa
from .functions.bspline import BSpline, linear_spline
from .functions.coslu import CosLU, SinLU, coslu, sinlu
from .functions.delu import DELU, HELU, delu
from .functions.ditac import DiTAC, cpab
from .functions.dsrelu import DSReLU, dsrelu
from .functions.dynamicrelu import DynamicReLU, dynamic_relu
from .functions.eelu import EELU, eelu
from .functions.evencubicrelu import EvenCubicReLU, even_cubic_relu
from .functions.formula import Formula
from .functions.fourier import Fourier, fourier
from .functions.frelu import FReLU, frelu
from .functions.lincomb import LinComb, NormLinComb, lincomb
from .functions.lslu import LSLU, lslu
from .functions.pelu import PELU, pelu
from .functions.polynomial import Polynomial, polynomial
from .functions.rational import Rational, rational
from .functions.relun import ReLUN, relun
from .functions.scaledsoftsign import ScaledSoftSign, scaled_softsign
from .functions.seriesrelu import SeriesReLU
from .functions.shilu import ShiLU, shilu
from .functions.snake import Snake, snake
from .functions.swish import Swish, swish
from .groups import parameter_groups, shape_parameters
from .swap.fade import Fade
from .swap.kinds import is_activation
from .swap.match import gain, match
from .swap.replace import SwapReport, replace_activations
from .tables import TableReport, tabulate

__version__ = "0.1.0"

__all__ = [
    "ACONC",
    "AGLU",
    "APA",
    "Activation",
    "BSpline",
    "Channels",
    "CosLU",
    "DELU",
    "DSReLU",
    "DiTAC",
    "DynamicReLU",
    "EELU",
    "EvenCubicReLU",
    "FReLU",
    "Fade",
    "Formula",
    "Fourier",
    "HELU",
    "LSLU",
    "LinComb",
    "NormLinComb",
    "Options",
    "PELU",
    "Polynomial",
    "Rational",
    "ReLUN",
    "ScaledSoftSign",
    "Scheduled",
    "SeriesReLU",
    "ShiLU",
    "SinLU",
    "Snake",
    "SwapReport",
    "Swish",
    "TableReport",
    "aconc",
    "aglu",
    "apa",
    "coslu",
    "cpab",
    "delu",
    "dsrelu",
    "dynamic_relu",
    "eelu",
    "even_cubic_relu",
    "fold",
    "fourier",
    "frelu",
    "fuse",
    "gain",
    "is_activation",
    "lincomb",
    "linear_spline",
    "lslu",
    "match",
    "parameter_groups",
    "pelu",
    "penalty",
    "polynomial",
    "rational",
    "relun",
    "replace_activations",
    "scaled_softsign",
    "set_progress",
    "shape_parameters",
    "shilu",
    "sinlu",
    "snake",
    "swish",
    "tabulate",
]
