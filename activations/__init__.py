"""Activation functions that change while a network trains, and how to put them into one."""

from .activation import Activation, Scheduled, set_progress
from .coslu import CosLU, coslu
from .dsrelu import DSReLU, dsrelu
from .groups import parameter_groups, shape_parameters
from .lslu import LSLU, lslu
from .swap import SwapReport, is_activation, replace_activations

__all__ = [
    "LSLU",
    "Activation",
    "CosLU",
    "DSReLU",
    "Scheduled",
    "SwapReport",
    "coslu",
    "dsrelu",
    "is_activation",
    "lslu",
    "parameter_groups",
    "replace_activations",
    "set_progress",
    "shape_parameters",
]
