"""Lightning callbacks: schedules, and what the activations learn."""

from .alternate import AlternatingOptimization
from .checkpoints import BestCheckpoint, LastCheckpoint, WholeFiles, best_path, finish
from .headfirst import HeadFirst
from .monitor import ActivationMonitor
from .predictions import PredictionWriter
from .progress import Progress
from .results import Results, read_results
from .schedule import ActivationSchedule
from .summary import run_details, run_results, run_summary

__all__ = [
    "ActivationMonitor",
    "ActivationSchedule",
    "AlternatingOptimization",
    "BestCheckpoint",
    "HeadFirst",
    "LastCheckpoint",
    "PredictionWriter",
    "Progress",
    "Results",
    "WholeFiles",
    "best_path",
    "finish",
    "read_results",
    "run_details",
    "run_results",
    "run_summary",
]
