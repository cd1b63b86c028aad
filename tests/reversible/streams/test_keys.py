"""A function has one key as long as it stands as it is, another when anything changes that decides what it does."""

import gc
import io
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.reversible.streams.held import DEEP, MOST_ITEMS, held_parts
from revtune.reversible.streams.keys import key_of
from revtune.reversible.streams.seen import MOST_HELD

NETS: dict[str, nn.Module] = {}
PAD = [-100]


class Kind(Enum):
    SUM = "sum"
    MEAN = "mean"


class Pair(NamedTuple):
    kind: Any
    pad: int


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden: Any) -> None:
        self.__hidden, self.shown = hidden, 1

    def read(self) -> Any:
        return self.__hidden


@dataclass
class Settings:
    """Of a trainer."""

    red: Any = "sum"
    more: dict[str, Any] = field(default_factory=dict)

    scale = 1.0

    def lose(self, y: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(y, targets, reduction=self.red)


def key(function: Any) -> Any:
    return key_of(function)


def of_closure(value: Any) -> Callable[[], Any]:
    return lambda: value


def of_keyword(value: Any) -> Callable[..., Any]:
    def function(*, value: Any = value) -> Any:
        return value

    return function


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "a closure": of_closure,
    "a default": lambda value: lambda x, value=value: value,
    "a keyword's default": of_keyword,
    "a partial's argument": lambda value: partial(print, value),
    "a partial's keyword": lambda value: partial(print, end=value),
    "a partial of a partial": lambda value: partial(partial(print, sep=value), end=1),
    "an object": lambda value: Settings(value).lose,
    "an object in an object": lambda value: Settings(Settings(value)).lose,
    "a slot": lambda value: Slotted(value).read,
    "a list": lambda value: of_closure([1, [value]]),
    "a tuple": lambda value: of_closure((value, Pair(value, 0))),
    "a dict": lambda value: of_closure({"a": {"b": value}}),
    "a dict with a default": lambda value: of_closure(defaultdict(list, a=value)),
    "a function's own attribute": lambda value: _with_attribute(value),
    "a function within": lambda value: of_closure(of_closure(value)),
}
VALUES: list[tuple[Any, Any]] = [
    ("sum", "mean"), (-100, 0), (True, False), (1, True), (1e-5, 1e-6), (None, 0), (Kind.SUM, Kind.MEAN),
    ("a" * 1000, "a" * 999 + "b"), (np.float32(1), np.float32(2)), (torch.float32, torch.float64), (torch.relu, F.gelu),
    (torch.ops.aten.relu, torch.ops.aten.gelu), ({1, 2}, {1, 3}), (Settings, Slotted), (str.lower, str.upper),
]  # fmt: skip


def _with_attribute(value: Any) -> Any:
    function = of_closure(1)
    function.value = value  # type: ignore[attr-defined]
    return function


@pytest.mark.parametrize("holder", HOLDERS)
def test_values_count(holder: str) -> None:
    for one, other in VALUES:
        first, again, second = (key(HOLDERS[holder](value)) for value in (one, one, other))
        assert first is not None and first == again, (one, "a function made anew is the same")
        assert second is not None and first != second, (one, other)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.hidden = 1e-5, [nn.Linear(2, 2)]
        self.norm = nn.BatchNorm1d(2)

    def forward(self, y: Tensor) -> Tensor:
        y = self.norm(self.hidden[0](y)) + self.eps
        return y


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "mode": lambda net: net.eval(),
    "mode within": lambda net: net.norm.eval(),
    "mode of a hidden one": lambda net: net.hidden[0].eval(),
    "an attribute": lambda net: setattr(net, "eps", 1e-6),
    "an attribute within": lambda net: setattr(net.norm, "eps", 1e-6),
    "a forward": lambda net: setattr(net, "forward", net.norm.forward),
    "a hook": lambda net: net.norm.register_forward_hook(lambda *_: None),
    "a module": lambda net: setattr(net, "norm", nn.BatchNorm1d(2)),
    "a hidden module": lambda net: net.hidden.append(nn.Linear(2, 2)),
    "no buffers": lambda net: setattr(net.norm, "running_mean", None),
    "a parametrization": lambda net: nn.utils.parametrizations.weight_norm(net.hidden[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_count_as_they_stand(change: str) -> None:
    net = Scaled()
    for holder in (lambda: net, of_closure([net]), of_closure({"net": net}), of_closure(Settings(net)), net):
        before = key(holder)
        assert before is not None and before == key(holder)
    before = key(net)
    CHANGES[change](net)
    assert key(net) is not None and key(net) != before


def test_a_hook_in_the_place_of_another_counts() -> None:
    net, keys = nn.Linear(2, 2), set()
    for _ in range(3):
        handle = net.register_forward_hook(lambda *_: None)
        keys.add(key(net))
        handle.remove()
    assert len(keys) == 3


def test_globals_count(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.BatchNorm1d(2)

    def function(y: Tensor) -> Any:
        return NETS["norm"](y), [PAD for _ in y]

    keys = [key(function)]
    monkeypatch.setitem(NETS, "norm", net)
    keys.append(key(function))
    net.eval()
    keys.append(key(function))
    monkeypatch.setattr(f"{__name__}.PAD", [0])
    keys.append(key(function))
    assert None not in keys and len(set(keys)) == 4
    assert any(part is net for _, part in held_parts(function))


def test_what_is_read_of_a_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(Settings().lose)
    monkeypatch.setattr(Settings, "unnamed", 3, raising=False)
    assert key(Settings().lose) == before, "which nothing names"
    monkeypatch.setattr(Settings, "scale", 2.0)
    assert key(Settings().lose) != before


def test_tensors_count_by_kind_and_vectors_by_their_changes() -> None:
    assert key(of_closure(torch.zeros(2, 3))) == key(of_closure(torch.ones(4, 3)))
    assert key(of_closure(nn.Parameter(torch.zeros(3)))) == key(of_closure(nn.Parameter(torch.ones(3))))
    weights = torch.ones(3)
    before = key(of_closure(weights))
    assert before == key(of_closure(weights)) != key(of_closure(torch.ones(3)))
    weights[0] = 2
    assert before != key(of_closure(weights))


def test_circles_end() -> None:
    circle: list[Any] = [nn.Linear(2, 2)]
    circle.append(circle)
    settings = Settings(circle)
    settings.more["settings"] = settings
    assert key(settings.lose) == key(settings.lose) is not None
    assert [part for _, part in held_parts(settings.lose) if isinstance(part, nn.Module)] == [circle[0]]


def test_a_trainer_has_a_key_which_its_settings_change() -> None:
    head = nn.Linear(2, 2)
    optimizer, settings = torch.optim.Adam(head.parameters(), lr=0.1), Settings()
    settings.more = {"optimizer": optimizer, "log": logging.getLogger("x"), "draws": torch.Generator(), "head": head}
    before = key(settings.lose)
    head(torch.ones(2)).sum().backward()
    optimizer.step()
    assert key(settings.lose) == before is not None, "moments are no settings"
    optimizer.param_groups[0]["lr"] = 0.01
    assert key(settings.lose) not in (before, None)


class Trainer(nn.Module):
    """Of somebody's own, with much that no readout looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.others = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(2 * MOST_ITEMS))
        self.steps, self.file, self.red, self.name = 0, io.BytesIO(b""), "sum", "red"

    def readout(self, y: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(y), targets, reduction=self.kind)

    @property
    def kind(self) -> str:
        return self.red

    def counting(self, y: Tensor) -> Tensor:
        return self.head(y) * self.steps

    def by_any_name(self, y: Tensor) -> Any:
        return getattr(self, self.name)


class Smooth(nn.CrossEntropyLoss):
    """A class of one's own, all of whose arithmetic is torch's."""


def test_what_no_code_names_does_not_count() -> None:
    trainer = Trainer()
    before = key(trainer.readout)
    trainer.steps, trainer.name = 1, "steps"
    trainer.others.eval()
    assert key(trainer.readout) == before is not None
    trainer.red = "mean"
    changed = key(trainer.readout)
    trainer.head.eval()
    assert len({before, changed, key(trainer.readout), None}) == 4


def test_what_is_named_elsewhere_counts() -> None:
    """By a property, by a function of torch's class, by a name that is made up."""
    trainer, loss = Trainer(), Smooth()
    before = key(trainer.counting), key(loss), key(trainer.by_any_name)
    trainer.steps, loss.label_smoothing = 1, 0.1
    assert None not in before[:2] and key(trainer.counting) != before[0] and key(loss) != before[1]
    assert before[2] is None, "it may read any attribute, and what a file holds cannot be told"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_function_is_the_one_that_was_given() -> None:
    net, pad = nn.Linear(2, 2), [0]
    for compiled in (torch.compile(net), torch.compile(lambda y: net(y) + pad[0])):
        function = of_closure(compiled)
        before = key(function)
        assert before == key(function) is not None
        net.train(not net.training)
        assert key(function) not in (before, None)


def nested(times: int) -> list[Any]:
    inner: list[Any] = [nn.Linear(2, 2)]
    for _ in range(times):
        inner = [inner]
    return inner


def test_what_cannot_be_told_has_no_key() -> None:
    several = [object() for _ in range(MOST_ITEMS)]
    for held in (
        io.BytesIO(b""), np.zeros(3), iter([1]), (number for number in "a"), list(range(MOST_ITEMS + 1)), nested(1000),
        [list(several) for _ in range(MOST_HELD)], [[object() for _ in several] for _ in range(6)],
    ):  # fmt: skip
        assert key(of_closure(held)) is None
    with torch.inference_mode():
        assert key(of_closure(torch.ones(3))) is None
    assert key(of_closure(nested(DEEP - 2))) is not None


def test_a_key_keeps_nothing_alive_and_ids_that_return_are_others() -> None:
    class Own(nn.Linear):
        pass

    net, settings = Own(2, 2), Settings()
    settings.more["net"] = net
    known = key(settings.lose)
    gone = [weakref.ref(thing) for thing in (net, settings, Own)]
    del net, settings, Own
    gc.collect()
    assert [one() for one in gone] == [None, None, None]
    assert all(key(Settings("sum", {"net": nn.Linear(2, 2)}).lose) != known for _ in range(20))
