"""A search by Optuna whose trials train reversible nets, and end early where they lag behind (pruning).

    pip install '.[examples]'
    python examples/optuna_search.py

Each trial learns to repeat the token of some steps ago, which takes memory for all tokens in between; a unit that may
forget few bits a step stores little when it is rewound. The bits stored are kept beside the loss of each whole trial.
"""

from __future__ import annotations

import optuna
import torch
from torch import Tensor

import revtune as rt

TOKENS, DELAY = 8, 4


def delayed(steps: int, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens (T, B), and those that came DELAY steps before; nothing counts (-100) before there are any."""
    tokens = torch.randint(TOKENS, (steps, rows))
    return tokens, torch.cat([torch.full((DELAY, rows), -100), tokens[:-DELAY]])


def objective(trial: optuna.Trial, *, updates: int = 200, steps: int = 100, rows: int = 16) -> float:
    """The mean loss of the last updates, in nats a token; log 8 = 2.08 knows nothing."""
    torch.manual_seed(0)
    units = trial.suggest_int("units", 16, 64, step=16)
    bits = trial.suggest_float("max_forget_bits", 0.5, 4.0, log=True)
    words, rnn = rt.Embedding(TOKENS, 16), rt.RevGRU(16, units, max_forget_bits=bits)
    head = rt.LinearCrossEntropy(units, TOKENS)
    parameters = [*words.parameters(), *rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, trial.suggest_float("lr", 1e-3, 3e-2, log=True))
    recent = 2.08
    for update in range(updates):
        loss, _ = rt.rewind_loss(rnn, *delayed(steps, rows), encode=words, readout=head)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent = 0.9 * recent + 0.1 * loss.item()
        trial.report(recent, update)
        if trial.should_prune():
            raise optuna.TrialPruned
    with rt.meter(peak=False) as used:  # on a long sequence: one that is a single chunk stores nothing
        rt.rewind_loss(rnn, *delayed(5000, rows), encode=words, readout=head)
    trial.set_user_attr("bits_per_unit_step", used.bits_per_unit_step)
    return recent


def search(trials: int = 12, **sizes: int) -> optuna.Study:
    """Search by TPE; a trial worse than the median of those before, at the same update, ends."""
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(3, 20, 10)
    )
    study.optimize(lambda trial: objective(trial, **sizes), trials)
    return study


if __name__ == "__main__":
    study = search()
    for trial in study.trials:
        print(trial.state.name, trial.params, f"loss {trial.value:.3f}" if trial.value else "", trial.user_attrs)
    print("best:", study.best_params)
