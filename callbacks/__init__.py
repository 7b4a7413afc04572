"""Lightning callbacks: schedules, and what the activations learn."""

from .monitor import ActivationMonitor
from .predictions import PredictionWriter
from .schedule import ActivationSchedule
from .summary import run_summary

__all__ = ["ActivationMonitor", "ActivationSchedule", "PredictionWriter", "run_summary"]
