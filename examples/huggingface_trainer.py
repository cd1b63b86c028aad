"""A reversible language model among Hugging Face's: configuration, `from_pretrained`, safetensors, and their Trainer.

The loss is streamed, so no logits of every step exist in training: long rows fit. `normalizer` takes the count of
targets that Trainer gives, by which accumulated batches weigh as one large batch does.

    pip install '.[examples]'
    python examples/huggingface_trainer.py

learns Python's own manual as bytes in rows of 1,000, saves, loads, and writes a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data.topics import topics
from tempfile import mkdtemp
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import ModelOutput

import revtune as rt

MANUAL = torch.tensor(list("\n".join(topics.values()).encode()))


class RevGRUConfig(PreTrainedConfig):
    """Sizes of a `RevGRUForCausalLM`."""

    model_type = "revgru"
    vocab_size: int = 256
    embedding_size: int = 64
    hidden_size: int = 256
    num_hidden_layers: int = 1
    max_forget_bits: float | None = 3.0


@dataclass
class RevGRUOutput(ModelOutput):
    """The loss where there are labels, else the logits (B, T, V); the state after the last token."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Tensor | None = None


class RevGRUForCausalLM(PreTrainedModel):
    """An embedding, a RevGRU and a softmax."""

    config_class = RevGRUConfig

    def __init__(self, config: RevGRUConfig) -> None:
        super().__init__(config)
        self.words = rt.Embedding(config.vocab_size, config.embedding_size)
        self.rnn = rt.RevGRU(
            config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True,
            max_forget_bits=config.max_forget_bits,
        )  # fmt: skip
        self.head = rt.LinearCrossEntropy(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Theirs knows neither layer: without this, weights that a checkpoint lacks would be left uninitialised."""
        if isinstance(module, rt.RevGRU | rt.LinearCrossEntropy):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, state: Tensor | None = None,
        num_items_in_batch: Any = None, **ignored: Any,
    ) -> RevGRUOutput:  # fmt: skip
        """The loss of labels (B, T), which are shifted here, -100 where none counts; without labels the logits."""
        if labels is None:
            y, h_n = self.rnn(self.words(input_ids), state)
            return RevGRUOutput(logits=self.head.logits(y), state=h_n)
        loss, after = rt.rewind_loss(
            self.rnn, input_ids[:, :-1], labels[:, 1:], encode=self.words, readout=self.head, state=state,
            normalizer=num_items_in_batch,
        )  # fmt: skip
        return RevGRUOutput(loss=loss, state=cast(Tensor, after))


def rows(text: Tensor, length: int) -> list[dict[str, Tensor]]:
    """A text cut into rows that are their own labels."""
    return [{"input_ids": row, "labels": row} for row in text.split(length)[:-1]]


def train(
    folder: str, *, length: int = 1000, steps: int = 150, text: Tensor = MANUAL, resume: bool = False, **sizes: Any
) -> Trainer:
    """Train by Trainer; a row in ten is held out."""
    data = rows(text, length)
    learnt, held_out = [row for number, row in enumerate(data) if number % 10], data[::10]
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=3e-3,
        use_cpu=True, report_to="none", disable_tqdm=True, prediction_loss_only=True, save_steps=steps, seed=0,
    )  # fmt: skip
    model = RevGRUForCausalLM(RevGRUConfig(**sizes))
    trainer = Trainer(model, arguments, train_dataset=learnt, eval_dataset=held_out)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@torch.no_grad()
def written(model: Any, prompt: str, length: int = 60) -> str:
    """A prompt, and the likeliest bytes after it."""
    tokens, state = torch.tensor([list(prompt.encode())]), None
    line = tokens
    for _ in range(length):
        out = model(tokens, state=state)
        tokens, state = out.logits[:, -1:].argmax(-1), out.state
        line = torch.cat([line, tokens], 1)
    return bytes(line[0].tolist()).decode(errors="replace")


if __name__ == "__main__":
    folder = mkdtemp()
    trainer = train(folder)
    print(trainer.evaluate())
    trainer.save_model(folder)
    model = RevGRUForCausalLM.from_pretrained(folder).eval()
    print(written(model, "The class "))
