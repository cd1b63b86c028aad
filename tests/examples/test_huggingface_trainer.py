"""Hugging Face's Trainer and their files around a loss that is rewound."""

from pathlib import Path
from typing import Any

import pytest
import torch

NEEDS = ("accelerate", "transformers")
SIZES = {"embedding_size": 16, "hidden_size": 32}


def test_trainer_trains_saves_and_loads_it(example: Any, tmp_path: Path) -> None:
    sizes = {"length": 50, "text": example.MANUAL[: 50 * 41], **SIZES}
    trainer = example.train(str(tmp_path), steps=20, **sizes)
    assert trainer.state.global_step == 20 and trainer.evaluate()["eval_loss"] < 5.4  # of log 256 = 5.545
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").exists()
    model = example.RevGRUForCausalLM.from_pretrained(tmp_path / "model").eval()
    row = example.MANUAL[None, :50]
    assert torch.equal(model(row).logits, trainer.model.eval()(row).logits)
    assert len(example.written(model, "The ", 5)) >= 5


def test_accumulated_batches_weigh_as_one_large_batch(example: Any) -> None:
    torch.manual_seed(0)
    model = example.RevGRUForCausalLM(example.RevGRUConfig(**SIZES))
    row = example.MANUAL[: 4 * 21].view(4, 21)
    labels = row.clone()
    labels[0, 5:] = -100  # a short row
    model(row, labels).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    count = (labels[:, 1:] != -100).sum()
    for part in (slice(0, 2), slice(2, 4)):
        model(row[part], labels[part], num_items_in_batch=count).loss.backward()
    for parameter, grad in zip(model.parameters(), whole, strict=True):
        assert parameter.grad == pytest.approx(grad, rel=1e-3, abs=1e-6)


def test_weights_that_a_checkpoint_lacks_are_initialised(example: Any, tmp_path: Path) -> None:
    model = example.RevGRUForCausalLM(example.RevGRUConfig(**SIZES))
    kept = {name: value for name, value in model.state_dict().items() if "hh" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = example.RevGRUForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.rnn.weight_ih_l0, model.rnn.weight_ih_l0)
    bound = 32**-0.5
    assert 0.5 * bound < loaded.rnn.weight_hh_l0.abs().max() <= bound
