"""Metrics against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from models.metrics import classification_metrics, draw_confusion


@pytest.mark.parametrize("count", [90, 200])
def test_auroc_of_many_classes(count: int):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count).repeat(3)
    scores = 3 * torch.randn(len(labels), count, generator=generator)
    scores[torch.arange(len(labels)), labels] += 4
    metrics = classification_metrics(count)
    metrics.update(scores, labels)
    shares = scores.softmax(1).numpy()
    expected = np.mean([roc_auc_score(labels.numpy() == n, shares[:, n]) for n in range(count)])
    assert metrics.compute()["auroc"].item() == pytest.approx(expected, abs=2e-3)


def test_names_of_classes_are_no_mathematics(tmp_path: Path):
    draw_confusion(tmp_path / "confusion.png", torch.eye(2), [r"$\foo$", "b"])
