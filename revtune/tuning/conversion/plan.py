"""What a conversion will do, settled module by module before any module is changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from revtune.tuning.conversion.bypasses import (
    Sources,
    reason_left,
    replaced_forward,
    shared_weights,
    stands_for,
    without_response,
)
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.noise import RATE
from revtune.tuning.regularizers.dropouts import (
    TunedDropout,
    TunedDropout1d,
    TunedDropout2d,
    TunedDropout3d,
    TunedLockedDropout,
    TunedNoise,
)
from revtune.tuning.regularizers.paths import path_rate, rate_of, refuses_path, tuned_path
from revtune.tuning.responses.registered import ResponseRegistered, response_class
from revtune.tuning.responses.responding import FROZEN, Responding

START = 0.05
"""Where a rate starts that is 0 in the network, as no gradient would reach it there."""

DROPOUTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: TunedDropout, nn.Dropout1d: TunedDropout1d, nn.Dropout2d: TunedDropout2d, nn.Dropout3d: TunedDropout3d
}  # fmt: skip
"""The tuned class of each dropout: of torch's, and of those that are entered here."""

READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules of torch that hand their layers' weights to fused functions: a response in there would not be computed."""


@dataclass
class Conversion:
    """What `self_tuning` did, by name of module: what each was replaced by, and why others were left alone.

    `leave` are the names of modules that were to be left alone, with all inside; `rows` is what the user said of the
    rows of modules (`self_tuning(rows=)`).
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    batch_dim: int = 0
    leave: tuple[str, ...] = ()
    rows: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        replaced = [f"  {name}: {what}" for name, what in self.replaced.items()] or ["  nothing"]
        left = [f"  {name}: {why}" for name, why in self.left.items()] or ["  nothing"]
        return "\n".join(["replaced", *replaced, "left alone", *left])


@dataclass(frozen=True)
class Replacement:
    """One module to be converted where it stands.

    Attributes:
        module: the module.
        kind: the class that it becomes.
        name: what it adopts: a dropout the hyperparameter of its rate, a layer its own name.
        batch_dim: which dimension of its input is examples.
        rates: the hyperparameters of a recurrent layer's rates, by rate.
    """

    module: Any
    kind: type[nn.Module]
    name: str
    batch_dim: int
    rates: dict[str, str] = field(default_factory=dict)

    def apply(self, hypers: Hyperparameters) -> None:
        """Change the module's class, so that its weights, its hooks and all that refer to it stay."""
        self.module.__class__ = self.kind
        self.module.adopt(hypers, self.name, self.batch_dim)
        for rate, tuned in self.rates.items():
            self.module.tune(rate, tuned)


class Plan:
    """The conversion of a network, as far as it can be told before anything is changed.

    Args:
        net: the network.
        hypers: what it is to be tuned by; None for a rate for each dropout.
        batch_dim: which dimension of the layers' inputs is examples; None for what the layers themselves tell of it.
        leave: names of modules that stay as they are.

    Attributes:
        replacements: modules to be converted, in order.
        rates: without hyperparameters, the present rates of those that are to be tuned, by name.
        of_batch: names in `rates` of those that are read as numbers, of which a batch has one.
        warnings: sentences for the user.
        report: what will have been done.

    Raises:
        ValueError: a registered layer cannot respond, or a hyperparameter cannot be a rate.
    """

    def __init__(
        self, net: nn.Module, hypers: Hyperparameters | None, batch_dim: int | None = None, leave: Collection[str] = ()
    ) -> None:
        self._hypers = hypers
        self._batch_dim = batch_dim = _told_batch_dim(net, leave) if batch_dim is None else batch_dim
        self.replacements: list[Replacement] = []
        self.rates: dict[str, float] = {}
        self.of_batch: set[str] = set()
        self.warnings: list[str] = []
        self.report = Conversion(batch_dim=batch_dim, leave=tuple(leave))
        self._shared, self._sources = shared_weights(net), Sources()
        self._read, self._numbers = self._readers_of(net, "weights"), self._readers_of(net, "rates")
        self._closed: set[str] = set()  # modules whose layers have no response; their dropouts are tuned
        for name, module in net.named_modules():
            if inside(name, leave) is None:
                self._plan(name, module)
            elif name in leave:
                self.report.left[name] = "it was to be left alone"

    def _readers_of(self, net: nn.Module, what: Literal["weights", "rates"]) -> dict[str, str]:
        """Modules whose weights or rates another's forward reads: by path the class of that other one."""
        return {
            f"{name}.{path}" if name else path: type(module).__name__
            for name, module in net.named_modules()
            for path in getattr(self._sources.of(module), what)
        }

    def _plan(self, name: str, module: nn.Module) -> None:
        own = name or "the network itself"
        if type(module) in DROPOUTS:
            reader = _readers(name, self._numbers)
            self._plan_dropout(name or "dropout", module, DROPOUTS[type(module)], rate_of(module, "p"), reader)
        elif rate := path_rate(module):
            if why := refuses_path(module, self._batch_dim):
                self.report.left[own] = why
            else:
                self._plan_dropout(name or "dropout", module, tuned_path(type(module), rate), rate_of(module, rate))
        elif inside(name, self._closed) is not None:
            if isinstance(module, nn.MultiheadAttention) and module.dropout:
                self.report.left[name] = f"the dropout of its weights stays {module.dropout}"
        elif isinstance(module, READS_WEIGHTS):
            self._closed.add(name)
            self.report.left[own] = f"{type(module).__name__} reads the weights of its layers directly"
            self.warnings.append(f"{own}: {self.report.left[own]}, so they have no response")
        elif (layer := response_class(type(module))) and (reader := inside(name, self._read)):
            self.report.left[name] = f"the forward of {self._read[reader]} reads its weights directly"
        elif layer:
            self._plan_layer(name, module, layer)
        elif isinstance(module, TunedNoise | TunedLockedDropout) and module.batch_dim != self._batch_dim:
            dims = f"{own} has batch_dim={module.batch_dim} and the network batch_dim={self._batch_dim}"
            self.warnings.append(f"{dims}; if its inputs are as those of the layers, give it that too")
        elif not isinstance(module, Hyperparameters) and (why := reason_left(module, self._sources.of(module))):
            self.report.left[own] = why
            if without_response(module):
                self.warnings.append(f"{own}: {why}")

    def _plan_dropout(
        self, name: str, module: nn.Module, kind: type[nn.Module], rate: float, reader: str | None = None
    ) -> None:
        tuned = hyper_of(name, self._hypers)
        if tuned is None:
            self.report.left[name] = f"no hyperparameter is named after it; its rate stays {rate}"
            return
        if patched := replaced_forward(module):
            self._leave_alone(name, f"{patched}, so its rate stays {rate}")
            return
        if reader and self._hypers is not None and self._hypers.spec(tuned).per == "example":
            read = f"the forward of {reader} reads its rate as a number, where each example would have one of its own"
            self._leave_alone(name, f'{read}; it stays {rate}, and Rate({rate}, per="batch") would be tuned')
            return
        if self._hypers is not None:
            RATE.check_tuned(name, tuned, self._hypers)
        else:
            self.rates[tuned] = float(rate)
            self.of_batch |= {tuned} if reader else set()
        number = f', one for the whole batch, as {reader} reads it as a number (per="batch")' if reader else ""
        self.report.replaced[name] = f"{type(module).__name__}, its rate tuned{number}{self._starts(rate)}"
        self.replacements.append(Replacement(module, kind, tuned, self._batch_dim))

    def _leave_alone(self, name: str, why: str) -> None:
        """Report a module that is left alone, though its user may count on it; with a warning."""
        self.report.left[name] = why
        self.warnings.append(f"{name}: {why}")

    def _plan_layer(self, name: str, module: nn.Module, kind: type[Responding]) -> None:
        if issubclass(kind, ResponseRegistered) and (why := kind.refuses(module)):
            raise ValueError(f"{name or 'the network'}, a {type(module).__name__}, cannot respond: {why}")
        if why := replaced_forward(module):
            self._leave_alone(name or "the network itself", f"{why}, so it has no response")
            return
        if why := (_tied(module, self._shared) or _without_grad(module) or kind.refuses(module)):
            self.report.left[name or "the network itself"] = why
            return
        rates = self._plan_rates(name, module, kind) if hasattr(kind, "RATES") else {}
        if isinstance(module, nn.RNNBase) and module.batch_first == bool(self._batch_dim) and name:
            its, other = ("examples", "time") if module.batch_first else ("time", "examples")
            self.warnings.append(
                f"{name} takes {its} first, and batch_dim={self._batch_dim} says that other layers have {other} first; "
                f"where they have not, give self_tuning batch_dim={1 - self._batch_dim}"
            )
        self.report.replaced[name or "the network itself"] = kind.__name__ + self._told_rates(module, kind, rates)
        self.replacements.append(Replacement(module, kind, name or "the network", self._batch_dim, rates))

    def _plan_rates(self, name: str, module: nn.Module, kind: Any) -> dict[str, str]:
        """What `own_rates` gives, checked; without hyperparameters the rates are to become some."""
        rates = own_rates(name, module, self._hypers)
        if self._hypers is None:
            now = kind.rates(module, named=False)
            self.rates.update({tuned: float(now[rate]) for rate, tuned in rates.items()})
            self.of_batch |= {tuned for rate, tuned in rates.items() if kind.RATES[rate].per_batch}
            return rates
        for rate, tuned in rates.items():
            kind.RATES[rate].check_tuned(f"{name}.{rate}", tuned, self._hypers)
        return rates

    def _told_rates(self, module: nn.Module, kind: Any, rates: dict[str, str]) -> str:
        """What is said of a layer's own rates that are tuned."""
        if not rates:
            return ""
        now = kind.rates(module, named=self._hypers is not None)
        resting = [rate for rate in rates if self._hypers is None and not now[rate]]
        starts = self._starts(0.0) if len(rates) == 1 else f" ({', '.join(resting)} was 0, and starts at {START})"
        return f", its {' and '.join(rates)} tuned" + (starts if resting else "")

    def _starts(self, rate: Any) -> str:
        """What is said of a rate that starts elsewhere than the network has it."""
        return f" (it was 0, and starts at {START})" if self._hypers is None and not rate else ""


def _told_batch_dim(net: nn.Module, leave: Collection[str]) -> int:
    """Which dimension is examples by those layers that tell it: 0 if they do not agree, or none does."""
    modules = [module for name, module in net.named_modules() if inside(name, leave) is None]
    if any(path_rate(module) for module in modules):
        return 0  # paths are dropped along the first dimension alone
    kinds = ((module, response_class(type(module))) for module in modules if not _without_grad(module))
    told = {dim for module, kind in kinds if kind and (dim := kind.told_batch_dim(module)) is not None}
    told |= {0 for module in modules if isinstance(module, nn.RNNBase) and module.batch_first}
    return told.pop() if len(told) == 1 else 0


def hyper_of(name: str, hypers: Hyperparameters | None) -> str | None:
    """The hyperparameter that a module of this name is tuned by: that of its name, whole or its last part."""
    if hypers is None:
        return name
    return next((own for own in (name, name.rpartition(".")[2]) if own in hypers.names), None)


def own_rates(name: str, module: nn.Module, hypers: Hyperparameters | None) -> dict[str, str]:
    """The hyperparameters of a module's own rates, by rate, such as that of a recurrent one between its layers."""
    kind: Any = response_class(type(module))
    prefix = f"{name}." if name else ""
    found = {rate: hyper_of(prefix + rate, hypers) for rate in kind.rates(module, named=hypers is not None)}
    return {rate: tuned for rate, tuned in found.items() if tuned}


def _readers(name: str, paths: dict[str, str]) -> str | None:
    """The class of a module that reads something of the module of this name; paths may hold indices that are open."""
    return next((reader for path, reader in paths.items() if stands_for(path, name)), None)


def inside(name: str, names: Collection[str]) -> str | None:
    """The first of some modules that is this one or holds it; "" is the network, which holds all."""
    return next((outer for outer in names if name == outer or name.startswith(f"{outer}.") or not outer), None)


def _without_grad(module: nn.Module) -> str | None:
    own = [p for p in module._parameters.values() if p is not None]
    return FROZEN if own and not any(p.requires_grad for p in own) else None


def _tied(module: nn.Module, shared: set[int]) -> str | None:
    tied = any(id(p) in shared for p in module._parameters.values() if p is not None)
    # where an embedding and a readout share a weight, the embedding's module has the response
    return "its weight is tied to another module's" if tied and not isinstance(module, nn.Embedding) else None
