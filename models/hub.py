"""What an exported network tells of itself, to programs and to people, and the way to the hub."""

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import activations
from activations import shape_parameters
from datamodules.beats import RHYTHM
from datamodules.preprocess import Preparation

from .classifier import Classifier
from .export import FILES
from .network import OPTIONS

SCHEMA = 1


def about(
    model: Classifier, checkpoint: Path, data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What an exported folder stores of a trained network, as plain data.

    Args:
        model: read from `checkpoint`.
        checkpoint: in the folder of a run its metrics are stored, too.
        data: the description of the data, for a checkpoint that has none.
    """
    options = {name: model.hparams[name] for name in OPTIONS if name in model.hparams}
    data = model.hparams.get("data") or data
    shape = [options["in_channels"], *[options["image_size"]] * options["dims"]]
    if data:
        shape = list(Preparation.of(data, str(checkpoint)).shape)
    names = (data or {}).get("class_names") or [str(k) for k in range(options["num_classes"])]
    learned = shape_parameters(model.backbone)
    return {
        "schema": SCHEMA,
        "options": options | {"stem": model.stem},
        "data": data,
        "class_names": list(names),
        "input": shape,
        "activation": _named(options["activation"]),
        "learned": {name: value.detach().tolist() for name, value in learned.items()},
        "run": _run(checkpoint),
        "code": activations.__version__,
        "torch": torch.__version__,
    }


def _named(activation: Any) -> str | None:
    """The class of a stored option."""
    path = activation.get("class_path") if isinstance(activation, Mapping) else activation
    return path.rpartition(".")[2] if path else None


def _run(checkpoint: Path) -> dict[str, Any] | None:
    """Budget and metrics of the run that a checkpoint is of; None outside of a finished run."""
    folder = checkpoint.absolute().parent.parent
    try:
        found = json.loads((folder / "results.json").read_text())
        best, epochs = found["best"] or {}, found["epochs"]
        own = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["epoch"]
        last = own == epochs[-1]["epoch"] and not checkpoint.stem.startswith("best")
        which = "last" if last else "best" if own == best.get("epoch") else f"epoch {own + 1}"
        metrics = next((each for each in epochs if each["epoch"] == own), {})
        kept = {n: v for n, v in metrics.items() if n.startswith("val/")}
        if which == "best" and any(metrics.get(n) != v for n, v in best.items()):
            # saved in the middle of its epoch, while these are of the end
            kept = {name: value for name, value in best.items() if name != "epoch"}
        machine = found["machine"]
        return {
            "name": "/".join(folder.parts[-2:]),
            "checkpoint": which,
            "seed": found["seed"],
            "commit": found["commit"],
            "epochs": len(epochs),
            "train_samples": found["train_samples"],
            "parameters": found["parameters"],
            "seconds": found["fit_s"],
            "processor": machine.get("gpu") or machine.get("processor"),
            "metrics": kept | found["test"].get(which, {}),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def card(about: Mapping[str, Any], files: Sequence[str], license: str | None = None) -> str:
    """A model card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        about: what :func:`about` gives.
        files: the names of the exported files.
        license: of the weights, by the hub's short name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    options, data, run = about["options"], about["data"] or {}, about["run"] or {}
    function, name = about["activation"], data.get("name") or "unknown data"
    signals = "lead" in data or options["dims"] == 1
    title = f"{options['backbone']} with {function or 'its own'} activations on {name}"
    task = "time-series-classification" if signals else "image-classification"
    metrics = run.get("metrics", {})
    header = ModelCardData(
        license=license,
        library_name="supple",
        pipeline_tag=None if signals else task,
        tags=["activation-functions", *([function] if function else []), options["backbone"]],
        model_name=title,
        eval_results=[
            EvalResult(task, _plain(name).lower(), _plain(name), kind, value)
            for kind, value in metrics.items()
            if kind.startswith("test/")
        ],
    )
    parts = [f"---\n{header.to_yaml()}\n---", f"# {title}"]
    if function in activations.__all__:
        parts.append(_function(getattr(activations, function)))
    if isinstance(made := options["activation"], Mapping) and made.get("init_args"):
        parts.append(f"Made with `{_plain(json.dumps(made['init_args']))}`.")
    parts += ["## How to load", _loading(about, files), "## Data", _data(about)]
    if about["learned"]:
        parts += ["## What the activations learned", _learned(about["learned"])]
    parts += ["## Training and results", _training(run, metrics), "## Licence"]
    parts.append(
        f"`{license}`, chosen by who published these weights."
        if license
        else "No licence was chosen for these weights: ask who published them."
    )
    return "\n\n".join(parts) + "\n"


def push(folder: Path, repository: str, api: Any = None) -> str:
    """Upload a folder to the Hugging Face hub, to a private repository if there is none yet.

    Args:
        folder: what was exported.
        repository: USER/NAME.
        api: a `huggingface_hub.HfApi`; by default that of the user who is logged in.

    Raises:
        ValueError: the hub refuses; the message has its reason.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        mine = [*FILES.values(), "openvino/*", "model_int8.onnx"]  # those of an earlier export go
        return str(api.upload_folder(repo_id=repository, folder_path=folder, delete_patterns=mine))
    except Exception as error:  # of the hub, of the network, or of this machine
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot push to {repository!r} ({why}): check the name, the connection, and that you "
            f"are logged in (hf auth login); the files are in {str(folder)!r}"
        ) from error


def _plain(text: object) -> str:
    """A text of a file, on one line and without marks."""
    return " ".join(re.sub(r"[`|<>\[\]]", " ", str(text)).split())[:100]


def _function(kind: type) -> str:
    """The name, the formula and the reference in the docstring of an activation."""
    text = inspect.getdoc(kind) or ""
    formula = re.search(r"\.\. math::\s+(.*?)\n\n", text, re.DOTALL)
    reference = re.search(r"Reference:\n(.*?)(?: Deviation|\Z)", text, re.DOTALL)
    parts = [f"{kind.__name__}: {text.partition('.')[0].lower()}."]
    parts += [f"$${' '.join(formula[1].split())}$$"] if formula else []
    parts += [" ".join(reference[1].split())] if reference else []
    return "\n\n".join(parts)


def _loading(about: Mapping[str, Any], files: Sequence[str]) -> str:
    lines = ["```python", "from models import load  # in a copy of supple's repository", ""]
    lines += ['network = load("this/folder")']
    inputs = "network.preprocess(sample)"
    if about["options"].get("side_size"):  # a batch and its side input
        inputs = '*network.preprocess("path/of/a/record")'
    lines += [f"probabilities = network({inputs}).softmax(1)"]
    if "model.onnx" in files:
        lines += ["```", "", "With ONNX Runtime alone:", "", "```python"]
        lines += ["import onnxruntime", ""]
        lines += ['session = onnxruntime.InferenceSession("model.onnx")']
        beside = ', "side": side' if about["options"].get("side_size") else ""
        lines += [f'[logits] = session.run(None, {{"input": batch{beside}}})']
    return "\n".join([*lines, "```"])


def _data(about: Mapping[str, Any]) -> str:
    data, names = about["data"] or {}, about["class_names"]
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:50])
    more = f" and {len(names) - 50} more" if names[50:] else ""
    rows = {"Classes": f"{len(names)}: {shown}{more}"}
    shape = ", ".join(map(str, about["input"]))
    rows["Input of the network"] = f"(N, {shape}), float32, normalised"
    if side := about["options"].get("side_size"):
        rows["Side input"] = f"(N, {side}), float32, not standardised"
        if columns := RHYTHM.get(data.get("rr", False)):
            rows["Columns of the side input"] = ", ".join(columns)
    if about.get("include_preprocessing"):
        raw = "heart beats in millivolt" if "representation" in data else "images in uint8"
        rows["Input of the files"] = f"{raw}, not normalised"
    if tables := about.get("tables"):
        rows["Functions in the files"] = (
            f"tables with an error of at most {tables['largest_error']:.0e} of their outputs' "
            "deviation; the weights hold the formulas"
        )
    titles = {"mean": "Mean", "std": "Standard deviation", "resize": "Photos are resized",
              "rate": "Samples a second", "lead": "Lead", "normalize": "Each beat is scaled",
              "window": "Seconds before and after the R peak",
              "baseline": "Baseline is subtracted", "rr": "Rhythm around each beat"}  # fmt: skip
    rows |= {titles[key]: _plain(data[key]) for key in titles if key in data}
    return _table(["what", "value"], rows.items())


def _learned(learned: Mapping[str, Any]) -> str:
    """A row for each parameter, over all its sites."""
    of: dict[str, list[Any]] = {}
    for name, value in learned.items():
        of.setdefault(name.rpartition(".")[2], []).append(value)
    rows = []
    for name, sites in of.items():
        values = torch.cat([torch.tensor(value, dtype=torch.float64).flatten() for value in sites])
        shown = (values.min(), values.mean(), values.max())
        rows.append([f"`{name}`", len(sites), *(f"{each:.4g}" for each in shown)])
    return _table(["parameter", "sites", "least", "mean", "largest"], rows)


def _training(run: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    if not run:
        return "The folder of the run was not at hand: its budget and its metrics are not known."
    kind = run["checkpoint"]
    epoch = kind if kind.startswith("epoch ") else f"{kind} epoch"
    budget = (
        f"{run['epochs']} epochs of {run['train_samples']} samples, {run['parameters']} "
        f"parameters, {run['seconds']:.0f} s on {_plain(run['processor'])}; seed {run['seed']}, "
        f"commit {_plain(run['commit'])}. These are the weights of its {epoch}."
    )
    known = {name: f"{value:.4f}" for name, value in metrics.items() if value is not None}
    rows = [[f"`{name}`", value] for name, value in known.items() if not name.startswith("test_")]
    parts = [budget, _table(["metric", "value"], rows)]
    # test_f1/N is the f1 of class N
    columns = list(dict.fromkeys(n.partition("/")[0] for n in known if n.startswith("test_")))
    classes = dict.fromkeys(n.partition("/")[2] for n in known if n.startswith("test_"))
    if columns:
        rows = [[f"`{_plain(c)}`", *(known.get(f"{k}/{c}", "") for k in columns)] for c in classes]
        head = ["class (test)", *(column.removeprefix("test_") for column in columns)]
        parts.append(_table(head, rows))
    source = f"From `results.json` of the run `{_plain(run['name'])}`, one run."
    return "\n\n".join([*parts, source])


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines)
