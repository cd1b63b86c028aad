"""Text from a model: the same tokens, whichever way its steps are taken."""

from typing import Any

import pytest
import torch

from revtune.program.language import sample
from revtune.program.language.config import Net
from revtune.program.language.model import build
from revtune.program.layers import Model
from revtune.reversible.layers import rnn
from revtune.reversible.layers.single_step import single_step

BACKENDS = ("native",)


@pytest.mark.parametrize("model", ["revgru", "revlstm"])
def test_text_is_what_it_is_without_single_steps(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = build(Net(model=model, embedding=8, hidden=20, layers=2), 30).eval()
    taken: list[bool] = []

    def noted(*arguments: Any) -> Any:
        result = single_step(*arguments)
        taken.append(result is not None)
        return result

    def drawn() -> list[int]:
        return list(sample.tokens(net, [3, 1, 4], length=200, temperature=1.0, seed=1))

    monkeypatch.setattr(rnn, "single_step", noted)
    found = drawn()
    assert taken == [False] + [True] * 199  # the prompt is a sequence
    monkeypatch.setattr(rnn, "single_step", lambda *arguments: None)
    assert drawn() == found and len(set(found)) > 10
