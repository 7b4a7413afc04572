"""Activation functions that change while a network trains, and how to put them into one."""

from .activation import Activation, Scheduled, penalty, set_progress
from .aglu import AGLU, APA, aglu, apa
from .compile import fuse_kernels
from .coslu import CosLU, SinLU, coslu, sinlu
from .delu import DELU, HELU, delu
from .ditac import DiTAC, cpab
from .dsrelu import DSReLU, dsrelu
from .dyrelu import DynamicReLU, dynamic_relu
from .eelu import EELU, eelu
from .evencubic import EvenCubicReLU, even_cubic_relu
from .frelu import FReLU, frelu
from .groups import parameter_groups, shape_parameters
from .lincomb import LinComb, NormLinComb, lincomb
from .lslu import LSLU, SeriesReLU, lslu
from .match import Fade, gain, match
from .relun import ReLUN, ShiLU, relun, shilu
from .rivals import ACONC, PELU, Snake, Swish, aconc, pelu, snake, swish
from .series import Fourier, Polynomial, Rational, fourier, polynomial, rational
from .softsign import ScaledSoftSign, scaled_softsign
from .spline import BSpline, linear_spline
from .swap import SwapReport, replace_activations
from .trace import is_activation

__all__ = [
    "ACONC",
    "AGLU",
    "APA",
    "Activation",
    "BSpline",
    "CosLU",
    "DELU",
    "DSReLU",
    "DiTAC",
    "DynamicReLU",
    "EELU",
    "EvenCubicReLU",
    "FReLU",
    "Fade",
    "Fourier",
    "HELU",
    "LSLU",
    "LinComb",
    "NormLinComb",
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
    "fourier",
    "frelu",
    "fuse_kernels",
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
]
