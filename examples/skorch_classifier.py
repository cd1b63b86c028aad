"""A classifier of long sequences in scikit-learn's hands, by skorch: pipelines, a grid search, weights without pickle.

`output="last"` gives a label a sequence: no output of every step exists, so memory hardly grows with length.

    pip install '.[examples]'
    python examples/skorch_classifier.py

learns whether the number that stood beside the only mark of a noisy sequence was positive, chooses how many bits a unit
may forget, and prints the memory of a training step beside nn.GRU's.
"""

from __future__ import annotations

from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import Tensor, nn

import revtune as rt


class MarkedSign(nn.Module):
    """A recurrent layer and a linear map of its last output."""

    def __init__(self, units: int = 16, max_forget_bits: float | None = 3.0) -> None:
        super().__init__()
        self.rnn = rt.RevGRU(2, units, batch_first=True, output="last", max_forget_bits=max_forget_bits)
        self.head = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(x)[0])
        return scores


def sequences(rows: int, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and marks (B, T, 2), one mark a sequence, and whether the marked number is positive, (B,)."""
    draw = np.random.default_rng(seed)
    numbers, at = draw.normal(size=(rows, steps)), draw.integers(steps, size=rows)
    marks = np.eye(steps)[at]
    return np.stack([numbers, marks], -1).astype("float32"), (numbers[np.arange(rows), at] > 0).astype("int64")


def classifier(**settings: Any) -> NeuralNetClassifier:
    """An estimator of scikit-learn's."""
    return NeuralNetClassifier(
        MarkedSign, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=0.02, batch_size=32, train_split=None,
        verbose=0, **settings,
    )  # fmt: skip


def search(rows: int = 512, steps: int = 100, epochs: int = 20) -> GridSearchCV:
    """Choose `max_forget_bits` by cross validation."""
    torch.manual_seed(0)
    grid = GridSearchCV(classifier(max_epochs=epochs), {"module__max_forget_bits": [0.5, 3.0]}, cv=2)
    return grid.fit(*sequences(rows, steps))


def peak(net: nn.Module, steps: int) -> int:
    """Bytes that a training step takes at most."""
    x = torch.from_numpy(sequences(16, steps)[0])
    with rt.meter() as used:
        y = net(x)[0]
        (y if y.dim() == 2 else y[:, -1]).sum().backward()
    return used.peak_bytes or 0


if __name__ == "__main__":
    grid = search()
    print(f"best {grid.best_params_}, right on new sequences: {grid.score(*sequences(512, 100, seed=1)):.3f}")
    with NamedTemporaryFile(suffix=".safetensors") as file:
        grid.best_estimator_.save_params(f_params=file.name, use_safetensors=True)
        other = classifier(**grid.best_params_).initialize()
        other.load_params(f_params=file.name, use_safetensors=True)
    x = sequences(8, 100)[0]
    print("saved and loaded:", (other.predict_proba(x) == grid.best_estimator_.predict_proba(x)).all())
    for net in (nn.GRU(2, 64, batch_first=True), rt.RevGRU(2, 64, batch_first=True, output="last")):
        peak(net, 10)  # compiles, and warms up
        print(f"{type(net).__name__}, 10,000 steps: {peak(net, 10_000):,} bytes")
