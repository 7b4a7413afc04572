"""The tutorials: their blocks run, in order, as a reader runs them."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(page: str, folder: Path) -> str:
    """What the blocks of `page` print; those of one language that follow each other are one script."""
    blocks = BLOCK.findall((ROOT / "docs/tutorials" / page).read_text())
    printed = ""
    for language, group in itertools.groupby(blocks, key=lambda block: block[0]):
        script = "".join(code for _, code in group)
        command = {"python": [sys.executable, "-W", "error", "-c"], "bash": ["bash", "-ec"]}
        if language == "python":
            script += "\nimport sys; assert 'lightning' not in sys.modules\n"
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [*command[language], script],
            cwd=folder,
            env={**os.environ, "PATH": binaries, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{page}: {done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


def test_own_loop(tmp_path: Path):
    printed = run("own_loop.md", tmp_path)
    accuracy = re.search(r"accuracy: ([\d.]+)", printed)
    assert accuracy
    assert float(accuracy[1]) > 0.6  # a guess gives 0.33
    assert "DSReLU(slope=0.5)" in printed
    assert (tmp_path / "stripes.pt").exists()


def test_question_to_figure(tmp_path: Path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    printed = run("question_to_figure.md", tmp_path)
    assert re.search(r"CosLU +0\.\d+ +0\.\d+ +2", printed)
    assert (tmp_path / "question.png").stat().st_size > 10_000
    found = {file.name for file in (tmp_path / "runs/Swish/seed1").iterdir()}
    assert {"activations.png", "parameters.png", "activations.csv", "metrics"} <= found
