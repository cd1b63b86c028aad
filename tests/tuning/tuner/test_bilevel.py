"""Gradients of both levels: nothing moves that must not, and what Delta-STN cannot go through is named."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import revtune as rt
from revtune.errors import HyperparameterError, NonFiniteError
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedDropout
from revtune.tuning.responses.linearized import tangent_of
from revtune.tuning.tuner import bilevel
from revtune.tuning.tuner.bilevel import BilevelProblem
from tests.tuned_nets import adopt, convolutional, with_responses

GRADIENTS = {"delta": bilevel.delta, "stn": bilevel.stn}
methods = pytest.mark.parametrize("method", GRADIENTS)


def unscaled(loss: Tensor) -> Tensor:
    return loss


# What moves


def classifier(method: str) -> tuple[BilevelProblem, Any]:
    """A convolutional net with everything in it, and a batch."""
    torch.manual_seed(0)
    hypers = Hyperparameters(a=Rate(0.3), b=Positive(0.1)).double()
    hypers.centred = method == "delta"
    net = with_responses(adopt(convolutional(), hypers))
    batch = (torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randint(3, (5,)))
    problem = BilevelProblem(
        net, hypers, lambda net, batch: net(batch[0]),
        lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none") * (1 + h.a + h.b),
        lambda out, batch: F.cross_entropy(out, batch[1]), lambda batch: len(batch[1]),
    )  # fmt: skip
    return problem, batch


def everything(problem: BilevelProblem) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in problem.model.state_dict(keep_vars=False).items()}


@methods
def test_a_validation_step_moves_no_weight_no_statistic_and_no_gradient(method: str) -> None:
    problem, batch = classifier(method)
    GRADIENTS[method](problem, batch, unscaled)
    before, own = everything(problem), dict(problem.model.named_parameters())
    grads = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}
    _, found = bilevel.hypergradients(problem, batch, 0.0)
    assert all(bool(grad.any()) for grad in found.values())
    assert all(torch.equal(value, before[name]) for name, value in everything(problem).items())
    assert grads and all(torch.equal(own[name].grad, grad) for name, grad in grads.items())  # type: ignore[arg-type]
    assert all(p.requires_grad for p in own.values()) and problem.model.training
    assert problem.hypers.raw.grad is None


@methods
def test_a_training_step_has_gradients_for_all_weights_and_for_no_hyperparameter(method: str) -> None:
    problem, batch = classifier(method)
    GRADIENTS[method](problem, batch, unscaled)
    base, added = problem.parameters()
    assert all(p.grad is not None and bool(p.grad.any()) for p in [*base, *added])
    assert problem.hypers.raw.grad is None and problem.hypers.spread.grad is None


def test_delta_trains_weights_on_the_plain_loss_at_the_current_values() -> None:
    problem, batch = classifier("delta")
    loss = bilevel.delta(problem, batch, unscaled)
    plain = convolutional()
    plain.load_state_dict({name: everything(problem)[name] for name in plain.state_dict()}, strict=True)
    plain.train()
    wanted = F.cross_entropy(plain(batch[0]), batch[1]) * (1 + 0.3 + 0.1)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    own = dict(problem.model.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, p.grad, rtol=1e-6, atol=1e-9)


def test_the_hypergradient_is_that_of_the_responded_loss() -> None:
    """By finite differences of l, with perturbations of no width."""
    problem, batch = classifier("delta")
    with torch.no_grad():
        problem.hypers.spread.fill_(-40.0)
    now = problem.hypers.raw.detach().clone()
    _, grads = bilevel.hypergradients(problem, batch, 0.0)
    for place in range(2):
        sides = []
        for sign in (1, -1):
            moved = now.repeat(5, 1)
            moved[:, place] += sign * 1e-5
            d = problem.hypers.departure(moved)
            with torch.no_grad(), problem.hypers.bound(Pass(5, d, None, training=False)):
                sides.append(F.cross_entropy(problem.model(batch[0]), batch[1]).item())
        assert grads[problem.hypers.raw][place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4)
    assert torch.equal(now, problem.hypers.raw)


def test_entropy_rewards_scale() -> None:
    problem, batch = classifier("delta")
    (_, without), (_, rewarded) = (seeded(problem, batch, entropy) for entropy in (0.0, 10.0))
    assert bool((rewarded[problem.hypers.spread] < without[problem.hypers.spread]).all())
    assert torch.equal(rewarded[problem.hypers.raw], without[problem.hypers.raw])


def seeded(problem: BilevelProblem, batch: Any, entropy: float) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    torch.manual_seed(3)
    return bilevel.hypergradients(problem, batch, entropy)


# Bad losses


@methods
def test_a_loss_that_is_not_finite_is_named_by_its_level(method: str) -> None:
    problem, batch = classifier(method)
    bad = (batch[0] * float("nan"), batch[1])
    with pytest.raises(NonFiniteError, match="the training loss is nan"):
        GRADIENTS[method](problem, bad, unscaled)
    with pytest.raises(NonFiniteError, match="the validation loss is nan"):
        bilevel.hypergradients(problem, bad, 0.0)


def test_a_validation_loss_that_reads_a_hyperparameter_is_refused() -> None:
    problem, batch = classifier("stn")
    problem.model.register_forward_pre_hook(lambda *_: problem.hypers["a"] and None)
    with pytest.raises(HyperparameterError, match="'a' is read in a validation pass"):
        bilevel.hypergradients(problem, batch, 0.0)
    assert problem.hypers.current is None and all(p.requires_grad for p in problem.model.parameters())


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="the training loss must be a tensor of floating-point numbers, got float"):
        bilevel.mean_of(1.0, "training")  # type: ignore[arg-type]


# What Delta-STN goes through, and what it cannot


def small(net: nn.Module, method: str, predict: Callable[..., Any] | None = None, loss: Any = None) -> BilevelProblem:
    """A network on rows of 4 numbers that answers, and its losses."""
    hypers = Hyperparameters(a=Rate(0.3), b=Positive(0.1)).double()
    hypers.centred = method == "delta"
    with_responses(adopt(net.double(), hypers))
    for module in net.modules():
        if type(module) is nn.Dropout and module.p:
            module.__class__ = TunedDropout
            module.adopt(hypers, "a")  # type: ignore[operator]
    return BilevelProblem(
        net, hypers, predict or (lambda net, batch: net(batch[0])),
        loss or (lambda out, batch, h: (out**2).flatten(1).sum(1) * (1 + h.b)),
        lambda out, batch: (out**2).mean(), lambda batch: len(batch[0]),
    )  # fmt: skip


def row(*shape: int) -> tuple[Tensor]:
    return (torch.randn(*(shape or (5, 4)), generator=torch.Generator().manual_seed(1), dtype=torch.float64),)


def gradients(problem: BilevelProblem, method: str, batch: Any) -> list[Tensor]:
    """Of all weights by a training step, and of hyperparameters by a validation step."""
    torch.manual_seed(3)
    GRADIENTS[method](problem, batch, unscaled)
    grads = [p.grad for group in problem.parameters() for p in group if p.grad is not None]
    return [*grads, *bilevel.hypergradients(problem, batch, 0.0)[1].values()]


class Deep(nn.Module):
    """Two layers around a block that is perhaps checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 6), nn.Linear(6, 3), reentrant
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Dropout(), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.last(
            self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        )
        return y


@methods
def test_checkpointed_code_has_the_gradients_that_it_has_otherwise(method: str) -> None:
    plain, checkpointed = (gradients(small(Deep(how), method), method, row()) for how in (None, False))
    assert len(plain) > 10 and all(map(torch.equal, plain, checkpointed))


@methods
def test_reentrant_checkpoints_are_refused_on_both_levels(method: str) -> None:
    problem = small(Deep(True), method)
    train = lambda: GRADIENTS[method](problem, row(), unscaled)  # noqa: E731
    valid = lambda: bilevel.hypergradients(problem, row(), 0.0)  # noqa: E731
    for step in (train, valid):
        with pytest.raises(ValueError, match="must be called with use_reentrant=False"):
            step()
    problem.model(*row())


class Attending(nn.Module):
    """Attention between two linear layers, and torch's own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(4, 3)
        self.torchs = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.first(x).unflatten(-1, (3, 2, 2)).movedim(2, 0).transpose(2, 3)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.last(self.torchs(y.transpose(1, 2).flatten(2)))
        return out


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of the reference
def test_attention_has_the_linear_predictions_gradient() -> None:
    problem, (x,) = small(Attending(), "delta"), row(5, 3, 4)
    hypers, own = problem.hypers, dict(problem.model.named_parameters())
    raw = hypers.raw.detach() + torch.randn(5, 2, dtype=torch.float64)
    d = hypers.departure(raw)
    bilevel._add_response_gradients(problem, (x,), raw, d, unscaled)
    weights = {name: p.detach() for name, p in own.items() if "response" in name}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        def run(d: Tensor) -> Tensor:
            with hypers.bound(Pass(len(d), d, None)):
                found: Tensor = torch.func.functional_call(problem.model, weights, (x,))
            return found

        value, along, *_ = torch.func.jvp(run, (torch.zeros_like(d),), (d,))
        return problem.loss(value + along, (x,), raw)

    with sdpa_kernel(SDPBackend.MATH):
        wanted = torch.func.grad(loss)(weights)
    for name, grad in wanted.items():
        assert grad.any()
        torch.testing.assert_close(own[name].grad, grad, rtol=1e-9, atol=1e-12)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Cube.apply(x)
        return y


class Fused(nn.Module):
    """What torch says of its own operations that have no formula."""

    def forward(self, x: Tensor) -> Tensor:
        if tangent_of(x) is not None:
            raise NotImplementedError("Trying to use forward AD with fused_op that does not support it because ...")
        return x


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Cubed(), r'^Cube of 1 \(Cubed\) cannot be differentiated forward, .* use method="stn", or give it a jvp$'),
        (Fused(), r'^fused_op of 1 \(Fused\) cannot be differentiated forward, .* use method="stn"$'),
    ],
)
def test_operations_without_a_forward_mode_formula_are_named(module: nn.Module, told: str) -> None:
    problem = small(nn.Sequential(nn.Linear(4, 6), module, nn.Linear(6, 3)), "delta")
    with pytest.raises(NotImplementedError, match=told):
        bilevel.delta(problem, row(), unscaled)
    bilevel.stn(small(nn.Sequential(nn.Linear(4, 6), module), "stn"), row(), unscaled)


def test_forward_mode_in_a_training_loss_is_named() -> None:
    """torch cannot nest it; under STN it is an ordinary operation."""

    def loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        slope: Tensor = torch.func.jvp(lambda y: (y**2).sum(1), (out,), (torch.ones_like(out),))[1]
        return slope**2 * (1 + h.b)

    told = r"differentiates forward itself, as torch\.func\.jvp does, .* use torch\.autograd\.grad there, or method="
    with pytest.raises(RuntimeError, match=told):
        bilevel.delta(small(nn.Linear(4, 3), "delta", loss=loss), row(), unscaled)
    bilevel.stn(small(nn.Linear(4, 3), "stn", loss=loss), row(), unscaled)


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


def test_a_dataclass_is_a_prediction_and_what_holds_no_tensor_is_none() -> None:
    def loss(out: Any, batch: Any, h: Any) -> Tensor:
        found: Tensor = (out.logits**2).sum(1) * (1 + h.b)
        return found

    plain = gradients(small(Deep(), "delta"), "delta", row())
    other = dataclasses.replace(
        small(Deep(), "delta", lambda net, batch: Output(net(batch[0])), loss),
        valid_loss=lambda out, batch: (out.logits**2).mean(),
    )
    assert all(map(torch.equal, plain, gradients(other, "delta", row())))
    hidden = type("Hidden", (), {})

    def predict(net: nn.Module, batch: Any) -> Any:
        found = hidden()
        found.logits = net(batch[0])
        return found

    with pytest.raises(TypeError, match="a prediction must be a tensor, or tuples, lists, .* got Hidden"):
        bilevel.delta(small(Deep(), "delta", predict, loss), row(), unscaled)
    bilevel.stn(small(Deep(), "stn", predict, loss), row(), unscaled)


@methods
def test_a_loss_that_reads_past_the_prediction_is_told(method: str) -> None:
    net: Any = Deep()
    net.first.register_forward_hook(lambda module, args, out: setattr(net, "kept", out))
    read = small(net, method, loss=lambda out, batch, h: (out**2).sum(1) + (net.kept**2).sum(1) * h.b)
    if method == "stn":
        bilevel.stn(read, row(), unscaled)
        return
    with pytest.warns(UserWarning, match="reads tensors of the network that are not in its prediction"):
        bilevel.delta(read, row(), unscaled)
    detached = lambda out, batch, h: (out**2).sum(1) + (net.kept.detach() ** 2).sum(1) * h.b  # noqa: E731
    bilevel.delta(dataclasses.replace(read, train_loss=detached), row(), unscaled)


class Chosen(nn.Module):
    """Layers chosen by something that is not put back between passes."""

    def __init__(self, *choices: list[int]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.layers, self.choices = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), list(choices)

    def forward(self, x: Tensor) -> Tensor:
        for chosen in self.choices.pop(0):
            x = self.layers[chosen](x)
        return x


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ([0], [1], "the second pass came to layers.1 where the first came to layers.0: what is chosen at random must"),
        ([0, 1], [0], "the second pass ended where the first came to layers.1"),
        ([0], [0, 1], "the second pass came to layers.1 where the first ended"),
    ],
)
def test_passes_that_take_different_layers_are_told(first: list[int], second: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bilevel.delta(small(Chosen([0], first, second), "delta"), row(), unscaled)
    bilevel.delta(small(Chosen([0], first, first), "delta"), row(), unscaled)


def test_generators_of_the_networks_device_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(bilevel, "set_random_states", lambda states, device=None: seen.append(device))
    bilevel.delta(small(Deep(), "delta"), row(), unscaled)
    assert seen == [torch.device("cpu")]


# What the second pass must tell apart


@torch.library.custom_op("revtune_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


doubled.register_autograd(lambda ctx, grad: 2 * grad)


class Doubled(nn.Module):
    """By an operation for which torch drops tangents without a word."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = doubled(x)
        return y


def test_operations_that_drop_tangents_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 6), Doubled(), nn.Linear(6, 3))
    with pytest.raises(NotImplementedError, match=r"doubled\S* .*cannot be differentiated forward, .* use method=.stn"):
        bilevel.delta(small(net, "delta"), row(), unscaled)


class OwnTarget(nn.Module):
    """A student and a target by the same layers, which is a constant."""

    def __init__(self, constant: str) -> None:
        super().__init__()
        self.body, self.head, self.constant = nn.Linear(4, 6), nn.Linear(6, 3), constant

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).tanh()
        if self.constant == "detach":
            return self.head(y) - (self.head(y + self.body(x + 1)) * y.mean()).detach()
        with torch.no_grad():
            target = self.head(y + self.body(x + 1)) * y.mean()
        return self.head(y) - target


def response_gradients(net: nn.Module) -> dict[str, Tensor]:
    """Those of one step of Delta-STN, by name."""
    problem = small(net, "delta")
    bilevel.delta(problem, row(), unscaled)
    return {name: p.grad for name, p in net.named_parameters() if "response" in name and p.grad is not None}


def test_no_grad_stops_tangents_as_detach_does() -> None:
    found = []
    for constant in ("detach", "no_grad"):
        torch.manual_seed(2)
        found.append(response_gradients(OwnTarget(constant)))
    assert found[0] and found[0].keys() == found[1].keys()
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


class Force(nn.Module):
    """It differentiates itself: the values of its layers come from the record then, and have no graph."""

    def __init__(self, prior: float) -> None:
        super().__init__()
        self.energy, self.prior = nn.Linear(4, 3), prior

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = self.energy(x).square().sum() + self.prior * x.square().sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_network_that_differentiates_itself_is_refused(prior: float) -> None:
    with pytest.raises(ValueError, match=r'^the network differentiates itself, .* use method="stn"$'):
        bilevel.delta(small(Force(prior), "delta"), row(), unscaled)
    bilevel.stn(small(Force(prior), "stn"), row(), unscaled)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile reads itself
def test_responses_of_a_compiled_network_are_those_of_the_network() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        if compiled:
            net.compile(backend="eager")
        found.append(response_gradients(net))
    torch._dynamo.reset()
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_what_a_loss_says_of_a_linear_prediction_is_told_with_what_that_is() -> None:
    """Where it is no first step that finds it."""

    def loss(out: Tensor, batch: Any, h: Any) -> Tensor:
        if out.grad_fn is None:
            raise RuntimeError("all elements must be between 0 and 1")
        return out.square().sum(1) * (1 + h.b)

    with pytest.raises(RuntimeError, match=r"on Delta-STN's linear prediction, .* own words: all elements must be"):
        bilevel.delta(small(nn.Linear(4, 3), "delta", loss=loss), row(), unscaled)


class Rewinding(nn.Module):
    """A reversible layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(4, 4), rt.RevGRU(4, 4, backend="reference")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(self.first(x)[None])[0][-1]
        return y


def test_a_reversible_layer_is_named_at_the_first_step() -> None:
    with pytest.raises(NotImplementedError, match=r"^an operation of rnn \(RevGRU\) cannot be .* use method=.stn"):
        bilevel.delta(small(Rewinding(), "delta"), row(), unscaled)


class Packing(nn.Module):
    """A recurrent layer on what has been made of an input that wants its gradient itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(4, 4), nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn((self.first(x) * x)[:, None])[0][:, 0]
        return y


def test_inputs_may_want_their_gradients() -> None:
    found = []
    for wants in (False, True):
        torch.manual_seed(2)
        net = Packing()
        problem = small(net, "delta")
        (x,) = row()
        bilevel.delta(problem, (x.requires_grad_(wants),), unscaled)
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
