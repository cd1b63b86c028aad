"""What `import revtune` shows, and under which names its classes are saved."""

import dataclasses
import importlib
import io
import pickle
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "RevGRU": lambda: rt.RevGRU(4, 8, num_layers=2, max_forget_bits=2.0, weight_drop=0.1),
    "RevLSTM": lambda: rt.RevLSTM(4, 8, bounded=False, forgetting=False),
    "Embedding": lambda: rt.Embedding(5, 4, dropout=0.1),
    "LinearCrossEntropy": lambda: rt.LinearCrossEntropy(4, 5, label_smoothing=0.1),
    "LockedDropout": lambda: rt.LockedDropout(0.2),
}


def test_the_face_shows_public_names_and_the_halves() -> None:
    shown = set(dir(rt))
    assert shown == {*rt.__all__, "__version__", "reversible", "tuning"}
    assert {name for name in shown if isinstance(getattr(rt, name), types.ModuleType)} == {"reversible", "tuning"}


def test_help_opens_with_what_a_user_does() -> None:
    first = (rt.__doc__ or "").split("\n- ")
    for name in ("RevGRU", "rewind_loss", "rewind_encode", "self_tuning", "Tuner", "frozen"):
        assert name in "\n".join(first[:7]), name


@pytest.mark.parametrize("name", sorted(rt.__all__))
def test_public_names_are_pickled_by_the_face(name: str) -> None:
    public = getattr(rt, name)
    assert public.__module__ == "revtune"
    saved = pickle.dumps(public)
    assert pickle.loads(saved) is public and b"reversible" not in saved and b"tuning." not in saved


@pytest.mark.parametrize("name", sorted(rt.__all__))
def test_annotations_of_public_names_are_resolved(name: str) -> None:
    public = getattr(rt, name)
    if isinstance(public, type):
        typing.get_type_hints(public)


@pytest.mark.parametrize("door", ["attention", "loader", "penalties", "regularize_images", "regularize_weights"])
def test_what_a_door_hands_on_is_pickled_by_it(door: str) -> None:
    module = importlib.import_module(f"revtune.{door}")
    for name in module.__all__:
        public = getattr(module, name)
        assert public.__module__ == f"revtune.{door}" and pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_saved_whole_loads_by_its_own_name_alone(name: str) -> None:
    layer, saved = LAYERS[name](), io.BytesIO()
    torch.save(nn.Sequential(layer), saved)
    saved.seek(0)
    with torch.serialization.safe_globals([getattr(rt, name), nn.Sequential]):
        loaded = torch.load(saved, weights_only=True)[0]
    assert type(loaded) is type(layer) and repr(loaded) == repr(layer)
    assert vars(loaded).keys() == vars(layer).keys()
    for key, value in layer.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


class Tagger(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Embedding(5, 4), nn.Dropout(0.1), nn.LSTM(4, 4, num_layers=2, dropout=0.2, batch_first=True)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self[2](self[1](self[0](tokens)))[0]
        return y


def test_a_tuned_network_saved_whole_loads_by_the_names_of_its_layers() -> None:
    net: Any = rt.self_tuning(Tagger())
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    layers = [type(module) for module in net.modules()]
    with torch.serialization.safe_globals([*layers, type(net.conversion)]):
        loaded = torch.load(saved, weights_only=True)
    tokens = torch.randint(5, (3, 2))
    net.eval(), loaded.eval()
    assert torch.equal(loaded(tokens), net(tokens)) and loaded.hypers.values() == net.hypers.values()
    assert loaded.hypers.specs == net.hypers.specs and str(loaded.conversion) == str(net.conversion)
    assert rt.frozen(loaded).get_submodule("2").dropout == pytest.approx(0.2)


def test_a_cell_put_in_place_of_a_layer_s_own_is_saved_with_it() -> None:
    layer = rt.RevGRU(4, 8)
    layer.cell = dataclasses.replace(layer.cell, name="mine")
    assert pickle.loads(pickle.dumps(layer)).cell.name == "mine"
    names = set(re.findall(rb"revtune[\w.]*", pickle.dumps(rt.RevGRU(4, 8))))
    assert names == {b"revtune"}
