"""The word language model that everyone has copied (pytorch/examples), with a layer that rewinds in theirs' place.

The loop is the well-known one: columns of a text, segments of `--bptt` words, clipped SGD whose rate falls to a quarter
when the validation loss does not. Two things change. `rt.rewind_loss` gives the loss of a segment, so no output and no
logit of every word is held; and the state that it returns is detached already, so there is nothing to repackage.

    python examples/word_language_model.py                              Python's own manual, by a RevLSTM
    python examples/word_language_model.py --data FOLDER --model GRU    train.txt, valid.txt, test.txt; torch's nn.GRU
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn

import revtune as rt

KINDS: dict[str, Any] = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM, "GRU": nn.GRU, "LSTM": nn.LSTM}


def read(folder: str | None) -> list[list[str]]:
    """Words of the texts to train, validate and test on; a line ends in <eos>."""
    if folder:
        texts = [(Path(folder) / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "valid", "test")]
    else:
        pages = list(topics.values())
        texts = ["\n".join(pages[10:]), "\n".join(pages[:5]), "\n".join(pages[5:10])]
    return [text.replace("\n", " <eos> ").split() for text in texts]


def columns(words: list[str], ids: dict[str, int], batch: int) -> Tensor:
    """Ids (T, B): each column goes on where it is, from segment to segment."""
    tokens = torch.tensor([ids.get(word, 0) for word in words])
    return tokens[: len(tokens) // batch * batch].view(batch, -1).t()


def segments(text: Tensor, bptt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (T, B) of one segment after another."""
    for start in range(0, len(text) - 1, bptt):
        stop = min(start + bptt, len(text) - 1)
        yield text[start:stop], text[start + 1 : stop + 1]


class WordModel(nn.Module):
    """An embedding, a recurrent stack and a softmax."""

    def __init__(self, kind: str, words: int, options: argparse.Namespace) -> None:
        super().__init__()
        rates = {"dropout": options.dropout if options.layers > 1 else 0.0}
        self.embedding = rt.Embedding(words, options.emsize)
        self.rnn = KINDS[kind](options.emsize, options.nhid, options.layers, **rates)
        self.head = rt.LinearCrossEntropy(options.nhid, words)

    def forward(self, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Nats a word, and the state after them, detached."""
        if isinstance(self.rnn, rt.RevGRU | rt.RevLSTM):
            return rt.rewind_loss(self.rnn, inputs, targets, encode=self.embedding, readout=self.head, state=state)
        y, state = self.rnn(self.embedding(inputs), state)
        state = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)
        return self.head(y, targets) / targets.numel(), state


def go_through(
    model: nn.Module, text: Tensor, options: argparse.Namespace, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, int]:
    """Read a text, and learn it where there is an optimizer; its perplexity, and the memory of a step."""
    learns, total, state, peak = optimizer is not None, 0.0, None, 0
    model.train(learns)
    with torch.set_grad_enabled(learns):
        for number, (inputs, targets) in enumerate(segments(text, options.bptt)):
            with rt.meter(peak=learns and number == 1) as used:
                loss, state = model(inputs, targets, state)
                if optimizer:
                    loss.backward()
            if optimizer:
                nn.utils.clip_grad_norm_(model.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
            total, peak = total + loss.item() * len(inputs), max(peak, used.peak_bytes or 0)
    return math.exp(total / (len(text) - 1)), peak


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, with the best validation perplexity's weights at the end; the perplexities of validation and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of train.txt, valid.txt and test.txt")
    parser.add_argument("--model", choices=KINDS, default="RevLSTM")
    for name, number in (("emsize", 200), ("nhid", 200), ("layers", 2), ("epochs", 6), ("batch", 20), ("bptt", 35)):
        parser.add_argument(f"--{name}", type=int, default=number)
    for name, rate in (("lr", 20.0), ("clip", 0.25), ("dropout", 0.2)):
        parser.add_argument(f"--{name}", type=float, default=rate)
    options = parser.parse_args(arguments)
    torch.manual_seed(1111)
    texts = read(options.data)
    ids = {word: number for number, word in enumerate(dict.fromkeys(["<unk>", *texts[0]]))}
    train, valid, test = (columns(words, ids, options.batch) for words in texts)
    model = WordModel(options.model, len(ids), options)
    optimizer, found = torch.optim.SGD(model.parameters(), options.lr), list[float]()
    for number in range(options.epochs):
        _, peak = go_through(model, train, options, optimizer)
        now, _ = go_through(model, valid, options)
        print(f"epoch {number}: perplexity {now:.1f}, {peak:,} bytes a step")
        if not found or now <= min(found):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            optimizer.param_groups[0]["lr"] /= 4
        found.append(now)
    model.load_state_dict(best)
    found.append(go_through(model, test, options)[0])
    print(f"test perplexity {found[-1]:.1f}")
    return found


if __name__ == "__main__":
    main()
