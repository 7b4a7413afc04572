"""A SLURM array script: one task for each run that comes next."""

import shlex
import sys
from pathlib import Path

from .copied import FOLDER
from .runs import Run, read_prepared

LARGEST = 1000  # index in an array that a cluster takes if it is not set up otherwise


def slurm_script(folder: Path, runs: list[Run], threads: int, program: str = "study") -> str:
    """The script; the study or search goes on with the next one when all its tasks have ended.

    Indices begin at 0 in each script; runs that would have too large ones are left for the next.
    """
    about, place = read_prepared(folder), folder.resolve()
    numbers = sorted(about[run.id]["number"] for run in runs)
    now = [number for number in numbers if number - numbers[0] <= LARGEST]
    again = [sys.executable, "-m", program, "run", str(place), "--on", "slurm"]
    return f"""#!/bin/bash
# {len(now)} of the {len(numbers)} runs that come next. When they have ended, for the others, or
# for the report: {shlex.join(again)}
#SBATCH --job-name={shlex.quote(place.name)}
#SBATCH --array={ranges([number - numbers[0] for number in now])}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={shlex.quote(str(place).replace("%", "%%") + "/slurm-%A-%a.log")}
# add here what your cluster needs, such as #SBATCH --gres=gpu:1, --mem=4G, --partition, --account,
# its longest time above, and %50 behind the array for 50 runs at a time
# by the name "interactive", Lightning's own requeue stays off
export PYTHONPATH={shlex.quote(f"{place}/{FOLDER}:{Path.cwd()}")} OMP_NUM_THREADS={threads}
srun --job-name=interactive {shlex.quote(sys.executable)} -m study work {shlex.quote(str(place))} \\
  $((SLURM_ARRAY_TASK_ID + {numbers[0]})) --threads {threads}
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
