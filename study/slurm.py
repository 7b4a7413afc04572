"""A SLURM array script: one task for each run that comes next."""

import shlex
import sys
from pathlib import Path

from .copied import FOLDER
from .runs import Run, read_prepared


def slurm_script(folder: Path, runs: list[Run], threads: int) -> str:
    """The script; the study goes on with the next one when all its tasks have ended."""
    about, place = read_prepared(folder), folder.resolve()
    numbers = ranges(sorted(about[run.id]["number"] for run in runs))
    return f"""#!/bin/bash
#SBATCH --job-name={place.name}
#SBATCH --array={numbers}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={shlex.quote(str(place).replace("%", "%%") + "/slurm-%a.log")}
# add here what your cluster needs, such as #SBATCH --gres=gpu:1
export PYTHONPATH={shlex.quote(f"{place}/{FOLDER}:{Path.cwd()}")} OMP_NUM_THREADS={threads}
srun --job-name=interactive {shlex.quote(sys.executable)} -m study work {shlex.quote(str(place))} \\
  "$SLURM_ARRAY_TASK_ID" --threads {threads}  # "interactive": Lightning's own requeue stays off
code=$?
if [ "$code" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # out of time: goes on where it was
exit "$code\""""


def ranges(numbers: list[int]) -> str:
    """Rising numbers as SLURM writes them: 0-3,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in parts)
