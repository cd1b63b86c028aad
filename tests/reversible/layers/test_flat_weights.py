"""What others read of a recurrent layer, and wrappers that are handed one: ours serves as torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import revtune as rt

pairs = pytest.mark.parametrize(
    ("rev", "plain"), [(rt.RevGRU, nn.GRU), (rt.RevLSTM, nn.LSTM)], ids=["RevGRU", "RevLSTM"]
)
kinds = pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}], ids=str
)


@kinds
@pairs
def test_attributes_are_those_of_torch_s_layer(rev: Any, plain: Any, options: dict[str, Any]) -> None:
    ours, theirs = rev(4, 8, **options), plain(4, 8, **options)
    assert isinstance(ours, nn.RNNBase)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                 "proj_size", "_all_weights", "_flat_weights_names"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [id(one) for one in ours._flat_weights] == [id(one) for layer in ours.all_weights for one in layer]
    assert [id(one) for one in ours._flat_weights] == [id(one) for one in ours.parameters()]
    assert not ours._weights_have_changed()


@kinds
@pairs
def test_checks_take_and_refuse_what_torch_s_do(rev: Any, plain: Any, options: dict[str, Any]) -> None:
    x, order = torch.randn(5, 3, 4), torch.tensor([2, 0, 1])
    for layer in (rev(4, 8, **options), plain(4, 8, **options)):
        shape = layer.get_expected_hidden_size(x, None)
        assert shape == (layer.num_layers * (1 + layer.bidirectional), 5 if layer.batch_first else 3, 8)
        hidden = torch.randn(shape[0], 3, 8)
        layer.check_input(x, None)
        layer.check_hidden_size(torch.zeros(shape), shape)
        with pytest.raises(RuntimeError, match="input must have 3 dimensions, got 2"):
            layer.check_input(x[0], None)
        if layer.mode == "LSTM":
            layer.check_forward_args(x, (torch.zeros(shape), torch.zeros(shape)), None)
            assert layer.get_expected_cell_size(x, None) == shape
            h, c = layer.permute_hidden((hidden, 2 * hidden), order)
            assert torch.equal(h, hidden[:, order]) and torch.equal(c, 2 * hidden[:, order])
        else:
            layer.check_forward_args(x, torch.zeros(shape), None)
            assert torch.equal(layer.permute_hidden(hidden, order), hidden[:, order])


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
def test_a_batch_without_rows_is_taken_as_torch_takes_it(
    rev: Any, plain: Any, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    found = []
    for kind in (rev, plain):
        layer = kind(4, 8, dtype=dtype, **options)
        shape = (0, 5, 4) if layer.batch_first else (5, 0, 4)
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        y, state = layer(x)
        y.sum().backward()
        assert x.grad is not None and all(not parameter.grad.any() for parameter in layer.parameters())
        states = [state] if isinstance(state, Tensor) else state
        found.append([y.shape, y.dtype, x.grad.shape, *(one.shape for one in states)])
    assert found[0] == found[1]


@pairs
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "num_layers": 2}, {"output": "last"}], ids=str)
def test_results_may_be_written_to(rev: Any, plain: Any, options: dict[str, Any]) -> None:
    layer, x = rev(4, 8, **options), torch.randn(5, 3, 4)

    def grads(written: bool) -> tuple[Tensor, ...]:
        y, state = layer(x)
        h = state if isinstance(state, Tensor) else state[0]
        y, h = (y.mul_(2), h.add_(1)) if written else (y * 2, h + 1)
        return torch.autograd.grad(y.square().sum() + h.square().sum(), list(layer.parameters()))

    assert all(map(torch.equal, grads(True), grads(False)))


class Sorted(nn.Module):
    """Like AllenNLP's PytorchSeq2SeqWrapper: reads a few attributes, runs rows packed, and restores their order."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        assert module.batch_first
        self.module = module
        self.width = module.hidden_size * (2 if module.bidirectional else 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True)
        packed = pack_padded_sequence(x[order], lengths[order], batch_first=True)
        y, _ = self.module(packed, None)
        padded, _ = pad_packed_sequence(y, batch_first=True)
        assert padded.shape[-1] == self.width
        return padded[order.argsort()]


@pairs
def test_a_wrapper_that_sorts_and_packs_takes_it(rev: Any, plain: Any) -> None:
    layer, x, lengths = rev(4, 8, batch_first=True, bidirectional=True), torch.randn(3, 6, 4), torch.tensor([2, 6, 4])
    y = Sorted(layer)(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(y[row, :length], layer(x[row : row + 1, :length])[0][0], atol=1e-5)


class NoStepsToo(nn.RNNBase):
    """Like pytorch-forecasting's RNN: a base that stands before the layer's class and calls its forward packed."""

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return super().forward(x, hx=hx)
        packed = pack_padded_sequence(x, lengths.clamp_min(1), batch_first=self.batch_first, enforce_sorted=False)
        y, state = super().forward(packed, hx=hx)
        return pad_packed_sequence(y, batch_first=self.batch_first)[0], state


@pairs
def test_a_base_for_torch_s_layers_may_stand_before_it(rev: Any, plain: Any) -> None:
    layer: Any = type("Flexible", (NoStepsToo, rev), {})(4, 8, batch_first=True)
    x, lengths = torch.randn(3, 6, 4), torch.tensor([2, 6, 0])
    y, state = layer(x, lengths=lengths)
    h = state if isinstance(state, Tensor) else state[0]
    assert y.shape == (3, 6, 8) and torch.equal(h[0, 1], y[1, 5]) and layer(x)[0].shape == (3, 6, 8)


@pytest.mark.filterwarnings("ignore")
def test_torchrl_s_modules_take_it() -> None:
    modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")
    for rev, wrapper, argument, states in (
        (rt.RevLSTM, modules.LSTMModule, "lstm", ["h", "c"]), (rt.RevGRU, modules.GRUModule, "gru", ["h"]),
    ):  # fmt: skip
        layer = rev(4, 8, batch_first=True)
        outputs = ["y", *(("next", name) for name in states)]
        module = wrapper(**{argument: layer}, in_keys=["obs", *states], out_keys=outputs)
        given = {"obs": torch.randn(3, 5, 4), "is_init": torch.zeros(3, 5, 1, dtype=torch.bool)}
        with modules.set_recurrent_mode(True):
            found = module(tensordict.TensorDict(given, [3, 5]))
        assert torch.equal(found["y"], layer(given["obs"])[0])


class Classifier(nn.Module):
    """A net that is handed a layer's class, and makes it."""

    def __init__(self, layer: Any = nn.GRU, hidden_size: int = 8) -> None:
        super().__init__()
        self.rnn, self.head = layer(4, hidden_size, batch_first=True), nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(x)[0][:, -1])
        return scores


@pytest.mark.filterwarnings("ignore")
@pairs
def test_skorch_trains_clones_and_saves_it(rev: Any, plain: Any, tmp_path: Any) -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    sklearn = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    torch.manual_seed(0)
    x = torch.randn(64, 6, 4).numpy()
    labels = (x.sum((1, 2)) > 0).astype("int64")
    net = skorch.NeuralNetClassifier(
        Classifier, module__layer=rev, criterion=nn.CrossEntropyLoss, max_epochs=15, lr=0.02,
        optimizer=torch.optim.Adam, train_split=None, verbose=0,
    )  # fmt: skip
    fitted = sklearn.clone(net).fit(x, labels)
    assert (fitted.predict(x) == labels).mean() > 0.8
    fitted.save_params(f_params=tmp_path / "net.pt")
    other = net.initialize()
    other.load_params(f_params=tmp_path / "net.pt")
    assert (other.predict_proba(x) == fitted.predict_proba(x)).all()
