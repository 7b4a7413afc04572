"""Lightning callbacks: schedules, and what the activations learn."""

from .alternate import AlternatingOptimization
from .monitor import ActivationMonitor
from .predictions import PredictionWriter
from .schedule import ActivationSchedule
from .summary import run_summary

__all__ = [
    "ActivationMonitor",
    "ActivationSchedule",
    "AlternatingOptimization",
    "PredictionWriter",
    "run_summary",
]
