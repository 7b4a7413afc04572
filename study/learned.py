"""What an arm learned: the functions of its layers, mean over the seeds."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from activations import set_progress
from activations.groups import shape_parameters
from callbacks.sites import activation_sites, curve, has_curve

from .arms import built
from .runs import Study
from .shapes import started
from .spec import SpecError

Array = NDArray[np.float64]


def learned_functions(
    study: Study, arm: str, cell: int
) -> tuple[Array, list[Array], list[Array]] | None:
    """Inputs, and for each layer the function at the start and the learned one.

    Mean over the channels and over the seeds that ended well; None if the arm learns nothing.

    Raises:
        SpecError: train.py cannot build the network here, or its values have other names or sizes;
            or what the arm learns is no function of one number.
    """
    runs = [study.verdict_run(arm, cell, seed) for seed in study.seeds]
    ended = [study.results[run.id] for run in runs if study.status(run) == "ok"]
    found = [each["learned"] for each in ended if each.get("learned")]
    if not found:
        return None
    options = runs[0].options | started(study, arm, cell)
    backbone = built(replace(runs[0], options=options)).model.backbone
    parameters = shape_parameters(backbone)
    sites = {
        name: module
        for name, module in activation_sites(backbone).items()
        if any(f"{each}.".startswith(f"{name}.") for each in parameters) and has_curve(module)
    }
    size = {name: parameter.numel() for name, parameter in parameters.items()}
    known = {name: np.size(values) for name, values in found[0].items()}
    if other := sorted(known.items() ^ size.items()):
        raise SpecError(
            f"in this code its values have other names or sizes ({other[0][0]}): report it with "
            f"commit {study.lock['commit']}"
        )
    if not sites:
        raise SpecError("what it learns is no function of one number")
    x = torch.linspace(-4, 4, 161)

    def drawn() -> list[Array]:
        return [curve(name, each, x, {}).mean(1).double().numpy() for name, each in sites.items()]

    first, last = drawn(), []
    set_progress(backbone, 1.0)
    for values in found:
        for name, parameter in parameters.items():
            parameter.data.copy_(torch.tensor(values[name]).view_as(parameter))
        last.append(drawn())
    return x.double().numpy(), first, list(np.mean(last, axis=0))
