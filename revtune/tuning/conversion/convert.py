"""Networks that tune themselves: every layer that can gets a response, every dropout a tuned rate.

Modules are converted where they stand (see `response`), all or none. What is left alone is told, with its reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from revtune.tuning.conversion.bypasses import read_directly, reason_left, shared_weights, without_response
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Rate
from revtune.tuning.noise import BATCH_RATE, RATE
from revtune.tuning.regularizers.dropouts import (
    TunedDropout,
    TunedDropout1d,
    TunedDropout2d,
    TunedDropout3d,
    TunedLockedDropout,
    TunedNoise,
)
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.registered import LAYERS, ResponseRegistered
from revtune.tuning.responses.responding import Responding

START = 0.05  # of rates that are 0, where no gradient would reach them


STARTS = f" (it was 0, and starts at {START})"


DROPOUTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: TunedDropout, nn.Dropout1d: TunedDropout1d, nn.Dropout2d: TunedDropout2d, nn.Dropout3d: TunedDropout3d
}  # fmt: skip


RECURRENT_RATES = {"dropout": ("_tuned_rate", RATE), "weight_drop": ("_tuned_weight_drop", BATCH_RATE)}


CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass
class Conversion:
    """What `self_tuning` did, by name of module: what each was replaced by, and why others were left alone."""

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    batch_dim: int = 0

    def __str__(self) -> str:
        told = [f"  {name}: {what}" for name, what in self.replaced.items()]
        alone = [f"  {name}: {why}" for name, why in self.left.items()] or ["  nothing"]
        return "\n".join(["replaced", *(told or ["  nothing"]), "left alone", *alone])


@dataclass
class _Plan:
    """Conversions that can be done, each as a function of the hyperparameters, before any is."""

    steps: list[Callable[[Hyperparameters], None]] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    told: Conversion = field(default_factory=Conversion)


def self_tuning(
    net: nn.Module,
    hypers: Hyperparameters | None = None,
    *,
    batch_dim: int = 0,
    leave: Collection[str] = (),
    verbose: bool = False,
) -> nn.Module:
    """Make a network tune its own hyperparameters: a response for every layer, a tuned rate for every dropout.

    The network is changed where it stands and returned: it computes the same function as before, its own parameters
    keep their names, and plain weights still load into it. Its hyperparameters are `net.hypers`, what was replaced and
    what was left alone, and why, is `net.conversion`.

    Args:
        net: any module.
        hypers: what to tune; a dropout is tuned by the hyperparameter of its name, whole or last part. By default every
            nn.Dropout, and the dropout between layers of nn.LSTM and nn.GRU, gets a `Rate` named after its module,
            from its present value on, or from 0.05 if that is 0. One named `weight_drop`, or `rnn.weight_drop` for the
            module rnn alone, per="batch", drops recurrent weights of nn.LSTM and nn.GRU.
        batch_dim: which dimension of the layers' inputs are examples: 1 where time comes first.
        leave: names of modules that stay as they are, with all inside, such as layers whose input is not of examples.
        verbose: whether to print what was done.

    Raises:
        ValueError: nothing can be tuned, nothing responds, it is self-tuning already, or has no module of a name in
            `leave`; nothing has been changed then.

    Example:
        >>> net = self_tuning(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)))
        >>> net.hypers.values()
        {'2': 0.2}
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"self_tuning wants a network, an nn.Module, got {type(net).__name__}")
    if hypers is not None and not isinstance(hypers, Hyperparameters):
        raise ValueError(f"hypers must be Hyperparameters(name=Rate(0.05), ...), got {type(hypers).__name__}")
    if batch_dim not in (0, 1):
        raise ValueError(f"batch_dim must be 0 or 1, got {batch_dim!r}")
    if any(isinstance(module, Responding) for module in net.modules()):
        raise ValueError("the network is self-tuning already; frozen(net) makes a plain one of it")
    for name, module in net.named_modules():
        if isinstance(module, TunedRegularizer) and module.hypers is not hypers:
            raise ValueError(f"{name or 'the network'} reads other hyperparameters; give self_tuning the same")
    _check_modules(net, leave)
    plan = _planned(net, hypers, batch_dim, leave)
    if hypers is None:
        if not plan.rates:
            raise ValueError("the network has no nn.Dropout to tune; name what to tune by Hyperparameters(...)")
        hypers = Hyperparameters(**{name: _started(name, rate) for name, rate in plan.rates.items()})
    if not any(what.startswith("Response") for what in plan.told.replaced.values()):
        raise ValueError(f"no layer of the network can respond to hyperparameters: {plan.told.left or 'it has none'}")
    like = next(net.parameters())
    hypers.to(like.device, like.dtype if like.dtype == torch.float64 else None)
    for step in plan.steps:
        step(hypers)
    _house(net, hypers)
    net.__dict__.update(hypers=hypers, conversion=plan.told)
    for sentence in plan.warnings:
        warnings.warn(sentence, stacklevel=2)
    if verbose:
        print(plan.told)
    return net


def _check_modules(net: nn.Module, leave: Collection[str]) -> None:
    if isinstance(leave, str):
        raise ValueError(f"leave must be a list of names, got the string {leave!r}")
    if unknown := set(leave) - {name for name, _ in net.named_modules() if name}:
        raise ValueError(f"leave must hold names of modules, as net.named_modules() has them, got {min(unknown)!r}")
    for name in ("hypers", "conversion"):
        if hasattr(net, name) and not isinstance(getattr(net, name), Hyperparameters):
            raise ValueError(f"the network has a {name} of its own, whose name self_tuning needs; give it another")
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the network'} is compiled by torch.jit, which fixes what it does; convert the "
                             "module that it was made of")  # fmt: skip
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run a batch through the network before it is converted")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, got {parameter.dtype}; Tuner takes autocast= instead")


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
    return {name: _started(name, rate) for name, rate in _planned(net, None, 0, ()).rates.items()}


def _started(name: str, rate: float) -> Rate:
    try:
        return Rate(rate or START)
    except ValueError as error:
        raise ValueError(f"{name} cannot be tuned from where it is: {error}") from None


def _house(net: nn.Module, hypers: Hyperparameters) -> None:
    """Make hyperparameters part of the network's state: a child of a layer that reads them, as the network itself may
    run all its children."""
    if all(module is not hypers for module in net.modules()):
        next(module for module in net.modules() if isinstance(module, Responding)).hyperparameters = hypers


def _planned(net: nn.Module, hypers: Hyperparameters | None, batch_dim: int, leave: Collection[str]) -> _Plan:
    plan, shared = _Plan(told=Conversion(batch_dim=batch_dim)), shared_weights(net)
    read, closed = _read_by(net), set[str]()
    for name, module in net.named_modules():
        own = name or "the network itself"
        if _inside(name, leave):
            if name in leave:
                plan.told.left[name] = "it was to be left alone"
        elif type(module) in DROPOUTS:
            _plan_dropout(plan, name or "dropout", module, hypers, batch_dim)
        elif _inside(name, closed) is not None:
            if isinstance(module, nn.MultiheadAttention) and module.dropout:
                plan.told.left[name] = f"the dropout of its weights stays {module.dropout}"
        elif isinstance(module, CLOSED):
            closed.add(name)
            plan.told.left[own] = f"{type(module).__name__} reads the weights of its layers directly"
            plan.warnings.append(f"{own}: {plan.told.left[own]}, so they have no response")
        elif type(module) in LAYERS and (reader := _inside(name, read)):
            plan.told.left[name] = f"the forward of {read[reader]} reads its weights directly"
        elif type(module) in LAYERS:
            _plan_layer(plan, name, module, shared, hypers, batch_dim)
        elif isinstance(module, TunedNoise | TunedLockedDropout) and module.batch_dim != batch_dim:
            own_dim = f"{own} has batch_dim={module.batch_dim} and the network batch_dim={batch_dim}"
            plan.warnings.append(f"{own_dim}; if its inputs are as those of the layers, give it that too")
        elif not isinstance(module, Hyperparameters) and (why := reason_left(module)):
            plan.told.left[own] = why
            if without_response(module):
                plan.warnings.append(f"{own}: {why}")
    return plan


def _read_by(net: nn.Module) -> dict[str, str]:
    """By name of a module, the class of the one above it whose forward reads its weights, or those of all inside it."""
    return {
        f"{name}.{path}" if name else path: type(module).__name__
        for name, module in net.named_modules()
        for path in read_directly(module)
    }


def _inside(name: str, names: Collection[str]) -> str | None:
    """The one of some modules that is this one, or holds it."""
    return next((one for one in names if name == one or name.startswith(f"{one}.") or not one), None)


def _plan_dropout(plan: _Plan, name: str, module: nn.Module, hypers: Hyperparameters | None, batch_dim: int) -> None:
    tuned = hyper_of(name, hypers)
    if tuned is None:
        plan.told.left[name] = f"no hyperparameter is named after it; its rate stays {module.p}"
        return
    rate, kind = float(module.p), DROPOUTS[type(module)]  # type: ignore[arg-type]
    if hypers is None:
        plan.rates[tuned] = rate
    else:
        RATE.check_tuned(name, tuned, hypers)
    starts = STARTS if hypers is None and not rate else ""
    plan.told.replaced[name] = f"{type(module).__name__}, its rate tuned{starts}"

    def convert(hypers: Hyperparameters) -> None:
        module.__class__ = kind
        module.adopt(hypers, tuned, batch_dim)  # type: ignore[operator]

    plan.steps.append(convert)


def hyper_of(name: str, hypers: Hyperparameters | None) -> str | None:
    """The hyperparameter that a module of a name is tuned by, if there is one."""
    if hypers is None:
        return name
    return next((own for own in (name, name.rpartition(".")[2]) if own in hypers.names), None)


def _plan_layer(
    plan: _Plan, name: str, module: nn.Module, shared: set[int], hypers: Hyperparameters | None, batch_dim: int
) -> None:
    kind = LAYERS[type(module)]
    if issubclass(kind, ResponseRegistered) and (why := kind.refuses(module)):
        raise ValueError(f"{name or 'the network'}, a {type(module).__name__}, cannot respond: {why}")
    if why := (_tied(module, shared) or _fixed(module) or kind.refuses(module)):
        plan.told.left[name or "the network itself"] = why
        return
    rates = _plan_rates(plan, name, module, hypers) if isinstance(module, nn.LSTM | nn.GRU) else {}
    if isinstance(module, nn.RNNBase) and module.batch_first == bool(batch_dim) and name:
        its, other = ("examples", "time") if module.batch_first else ("time", "examples")
        plan.warnings.append(
            f"{name} takes {its} first, and batch_dim={batch_dim} says that other layers have {other} first; where "
            f"they have not, give self_tuning batch_dim={1 - batch_dim}"
        )
    also = f", its {' and '.join(rates)} tuned" if rates else ""
    also += STARTS if hypers is None and rates and not module.dropout else ""
    plan.told.replaced[name or "the network itself"] = f"{kind.__name__}{also}"

    def convert(hypers: Hyperparameters) -> None:
        module.__class__ = kind
        module.adopt(hypers, name or "the network", batch_dim)  # type: ignore[operator]
        for rate, tuned in rates.items():
            module.__dict__[RECURRENT_RATES[rate][0]] = partial(hypers.__getitem__, tuned)

    plan.steps.append(convert)


def _plan_rates(plan: _Plan, name: str, module: nn.LSTM | nn.GRU, hypers: Hyperparameters | None) -> dict[str, str]:
    """As `recurrent_rates`, checked; without hyperparameters, rates that are to become some are planned."""
    rates = recurrent_rates(name, module, hypers)
    if hypers is None:
        plan.rates.update({tuned: module.dropout for tuned in rates.values()})
        return rates
    for rate, tuned in rates.items():
        RECURRENT_RATES[rate][1].check_tuned(f"{name}.{rate}", tuned, hypers)
    return rates


def recurrent_rates(name: str, module: nn.RNNBase, hypers: Hyperparameters | None) -> dict[str, str]:
    """What tunes the dropout between a recurrent module's layers, and that of its recurrent weights, by rate."""
    prefix = f"{name}." if name else ""
    wanted = ["dropout"] * (module.num_layers > 1) + ["weight_drop"] * (hypers is not None)
    found = {rate: hyper_of(prefix + rate, hypers) for rate in wanted}
    return {rate: tuned for rate, tuned in found.items() if tuned}


def _fixed(module: nn.Module) -> str | None:
    own = [p for p in module._parameters.values() if p is not None]
    return "its weights are frozen" if own and not any(p.requires_grad for p in own) else None


def _tied(module: nn.Module, shared: set[int]) -> str | None:
    tied = any(id(p) in shared for p in module._parameters.values() if p is not None)
    return "its weight is tied to another module's" if tied and not isinstance(module, nn.Embedding) else None
