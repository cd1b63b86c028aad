"""Networks that tune themselves: every layer that can gets a response, every dropout a tuned rate.

Modules are converted where they stand (`Replacement`), all or none. What is left alone is reported, with its reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from revtune.tuning.conversion.plan import START, Plan, inside
from revtune.tuning.conversion.told_rows import checked_rows, tell_rows
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Rate
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import Responding
from revtune.tuning.responses.witness import Witness


def self_tuning(
    net: nn.Module,
    hypers: Hyperparameters | None = None,
    *,
    batch_dim: int | None = None,
    leave: Collection[str] = (),
    rows: Mapping[str, str | Sequence[int] | Tensor] | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Make a network tune its own hyperparameters: a response for every layer, a tuned rate for every dropout.

    The network is changed where it stands and returned: it computes the same function as before, its own parameters
    keep their names, and plain weights still load into it. Its hyperparameters are `net.hypers`, what was replaced and
    what was left alone, and why, is `net.conversion`.

    Args:
        net: any module.
        hypers: what to tune. A dropout is tuned by the hyperparameter of its name, whole or its last part. A
            hyperparameter named `weight_drop`, or `rnn.weight_drop` for the module rnn alone, with per="batch", drops
            recurrent weights of nn.LSTM, nn.GRU and nn.RNN. By default every nn.Dropout, and the dropout between layers
            of those, gets a `Rate` named after its module, which starts at its present rate, or at 0.05 if that is 0.
        batch_dim: which dimension of the layers' inputs is examples: 1 where time comes first. By default it is 1 if
            there are RevGRU and RevLSTM and all of them were made with time first, else 0.
        leave: names of modules that stay as they are, with all inside, such as layers whose input is not of examples;
            they may be complex, compiled by torch.jit or lazy.
        rows: how the rows of modules repeat, by name, with all inside, where they are not the batch and revtune cannot
            follow them from it: "together" if the rows of an example stand together, as `flatten(0, 1)` puts them,
            "alternating" if examples do, as `torch.cat([a, b])` puts them, "all" if each row is of all examples, as
            positions are, or the example of each row, a list or tensor of integers.
        verbose: whether to print what was done.

    Raises:
        ValueError: nothing in the network can be tuned, or nothing responds; it is self-tuning already; it has no
            module of a name in `leave` or `rows`, or rows that mean nothing. Nothing has been changed then.

    Example:
        >>> net = self_tuning(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)))
        >>> net.hypers.values()
        {'2': 0.2}
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"self_tuning wants a network, an nn.Module, got {type(net).__name__}")
    if hypers is not None and not isinstance(hypers, Hyperparameters):
        raise ValueError(f"hypers must be Hyperparameters(name=Rate(0.05), ...), got {type(hypers).__name__}")
    if batch_dim not in (None, 0, 1):
        raise ValueError(f"batch_dim must be 0 or 1, got {batch_dim!r}")
    if any(isinstance(module, Responding) for module in net.modules()):
        raise ValueError("the network is self-tuning already; frozen(net) makes a plain one of it")
    for name, module in net.named_modules():
        if isinstance(module, TunedRegularizer) and module.hypers is not hypers:
            raise ValueError(f"{name or 'the network'} reads other hyperparameters; give self_tuning the same")
    _check_modules(net, leave)
    plan = Plan(net, hypers, batch_dim, leave)
    plan.report.rows.update(checked_rows(net, rows or {}, {replacement.module for replacement in plan.replacements}))
    if hypers is None:
        if not plan.rates:
            raise ValueError(_nothing_to_tune(plan))
        hypers = Hyperparameters(**_started(plan))
    if not any(what.startswith("Response") for what in plan.report.replaced.values()):
        raise ValueError(f"no layer of the network can respond to hyperparameters: {plan.report.left or 'it has none'}")
    like = next(p for replacement in plan.replacements for p in replacement.module.parameters())
    hypers.to(like.device, like.dtype if like.dtype == torch.float64 else None)  # at least as exact as the weights
    for replacement in plan.replacements:
        replacement.apply(hypers)
    tell_rows(net, plan.report.rows)
    _make_child(hypers, net)
    hypers.witness = Witness(net)
    net.__dict__.update(hypers=hypers, conversion=plan.report)  # past nn.Module, which would make a child of hypers
    for sentence in plan.warnings:
        warnings.warn(sentence, stacklevel=2)
    if verbose:
        print(plan.report)
    return net


def dropout_rates(net: nn.Module) -> dict[str, Rate]:
    """A `Rate` for each dropout that `self_tuning` would tune by itself, by name: for use beside others.

    Args:
        net: a network that has not been converted.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> hypers = Hyperparameters(decay=Positive(1e-4), **dropout_rates(net))
        >>> self_tuning(net, hypers).hypers.values()
        {'decay': 0.0001, '1': 0.2}
    """
    return _started(Plan(net, None))


def _check_modules(net: nn.Module, leave: Collection[str]) -> None:
    if isinstance(leave, str):
        raise ValueError(f"leave must be a list of names, got the string {leave!r}")
    if unknown := set(leave) - {name for name, _ in net.named_modules() if name}:
        raise ValueError(f"leave must hold names of modules, as net.named_modules() has them, got {min(unknown)!r}")
    for name in ("hypers", "conversion"):
        if hasattr(net, name) and not isinstance(getattr(net, name), Hyperparameters):
            raise ValueError(f"the network has a {name} of its own, whose name self_tuning needs; give it another")
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and inside(name, leave) is None:
            raise ValueError(f"{name or 'the network'} is compiled by torch.jit, which fixes what it does; convert the "
                             "module that it was made of")  # fmt: skip
    for name, parameter in net.named_parameters():
        if inside(name, leave) is not None:
            continue
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run a batch through the network before it is converted")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, got {parameter.dtype}; Tuner takes autocast= instead")


def _started(plan: Plan) -> dict[str, Rate]:
    """A rate for each that is to be tuned, where it is now."""
    rates = dict[str, Rate]()
    for name, rate in plan.rates.items():
        try:
            rates[name] = Rate(rate or START, per="batch" if name in plan.of_batch else "example")
        except ValueError as error:
            raise ValueError(f"{name} cannot be tuned from where it is: {error}") from None
    return rates


def _nothing_to_tune(plan: Plan) -> str:
    """What is said of a network without an nn.Dropout, which may still drop by a function."""
    sentence = "the network has no nn.Dropout to tune; name what to tune by Hyperparameters(...)"
    if functional := next(((name, why) for name, why in plan.report.left.items() if "as a function" in why), None):
        sentence += (
            f". {functional[0]}: {functional[1]}. Two lines do that: self.drop = nn.Dropout(0.1) in __init__ and "
            "x = self.drop(x) in forward, each with the rate and the tensor that are there now"
        )
    return sentence


def _make_child(hypers: Hyperparameters, net: nn.Module) -> None:
    """Make hyperparameters part of the network's state, as a child of one of its response layers.

    They are no child of the network itself, which may be an nn.Sequential, and that runs every child it has.
    """
    if all(module is not hypers for module in net.modules()):
        next(module for module in net.modules() if isinstance(module, Responding)).hyperparameters = hypers
