"""Time of a whole training step, reversible beside torch's own: python benchmarks/step_time.py [--rounds 7]

Contestants take turns in one process, after a warm-up; each figure is the median ratio to the torch layer it replaces,
with the least and the largest ratio of a round. Only ratios are reported: they hold from machine to machine where
times do not.
"""

import argparse
import statistics
import time

import torch

from revtune.contestants import Contestant, Net, Shape

SHAPES = (Shape(steps=70, batch=20, hidden=650, vocabulary=10_000), Shape(steps=1000, batch=20, hidden=256))
PAIRS = (("RevGRU", "nn.GRU"), ("RevLSTM", "nn.LSTM"))


def ratios(ours: str, theirs: str, shape: Shape, rounds: int) -> list[float]:
    """Time of a step of `ours` over one of `theirs`, round by round."""
    nets = [Net(Contestant(cell=cell), shape) for cell in (ours, theirs)]
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch))
    found = []
    for turn in range(rounds + 1):
        took = []
        for net in nets:
            net.zero_grad(set_to_none=True)
            began = time.perf_counter()
            net.step(tokens[:-1], tokens[1:])
            took.append(time.perf_counter() - began)
        if turn:
            found.append(took[0] / took[1])
    return found


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description="Time of a whole training step beside torch's own layers.")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds after one of warm-up")
    rounds = parser.parse_args().rounds
    print("| T, B, H, V | threads | pair | median | least | largest |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for ours, theirs in PAIRS:
                found = ratios(ours, theirs, shape, rounds)
                sizes = f"{shape.steps}, {shape.batch}, {shape.hidden}, {shape.vocabulary}"
                row = f"| {sizes} | {threads} | {ours} / {theirs} | {statistics.median(found):.2f}"
                print(f"{row} | {min(found):.2f} | {max(found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
