"""revtune: recurrent nets that rewind instead of remembering, and networks that tune their own hyperparameters.

Train a recurrent net in a fraction of the memory::

    import revtune as rt

    words, rnn, head = rt.Embedding(10_000, 300), rt.RevGRU(300, 512), rt.LinearCrossEntropy(512, 10_000)
    loss, state = rt.rewind_loss(rnn, tokens, targets, encode=words, readout=head)
    loss.backward()                       # exact gradients; the optimizer and the loop stay yours

- `RevGRU`, `RevLSTM`: nn.GRU's and nn.LSTM's arguments and shapes. They recompute their states backwards from the last.
- `RevGRUCell`, `RevLSTMCell`: one step of them, as nn.GRUCell and nn.LSTMCell; these do not rewind.
- `rewind_loss`: a whole training step for a loss at every step. Encoder, net and readout stream, so that no output of
  every step exists. `Embedding`, `LinearCrossEntropy`, `LockedDropout` and `Readout` are made for it; any module works.
  `ActivationPenalties` are added to its loss.
- `rewind_outputs`: all outputs of a small head, for a loss over whole sequences (CTC, a CRF, PPO), which goes backward
  by rewinding.
- `rewind_encode`: a sequence's final state, and a few units of every step for a decoder to attend to.
- `meter`: memory and stored bits of a block of code.

Tune the hyperparameters of any network in one run::

    net = rt.self_tuning(net)             # every nn.Dropout becomes a tuned rate
    tuner = rt.Tuner(net, train_loss, valid_loss, optimizer=lambda params: torch.optim.Adam(params, 1e-3))
    for batch, valid in tuner.batches(train_data, valid_data):
        tuner.step(batch, valid)
    plain = rt.frozen(net)                # a plain network, which needs no revtune

- `self_tuning` converts a network; `Tuner` trains both levels; `frozen` makes the result plain again. `replay` applies
  a schedule that was found, `tuner.schedule()`, in the loop of a plain network.
- `Hyperparameters` says what to tune, by `Rate`, `Between`, `Positive` and `Integer`.
- `TunedNoise`, `TunedLockedDropout`, `weight_norm2`, `revtune.penalties`, `revtune.regularize_images`,
  `revtune.regularize_weights`, `revtune.loader`: what they regularize.
- `Mechanic` tunes the learning rate of any optimizer, also where nothing else is tuned.
- `register_response` lets a layer of your own answer to hyperparameters.

Train in several processes as in one: `Processes`, and `Tuner(processes=)`.

Write a cell of your own: `Cell`, `Stage`, `Coupling`, `forget_gate`, run by `scan` and `record` (docs/own-cell.md).

The code lies in two halves, `revtune.reversible` and `revtune.tuning`, and in `revtune.joint`, where they meet. The
program `revtune` is `revtune.program`.
"""

import revtune.joint.entries  # noqa: F401  # by which the two halves know what is made of both
from revtune.errors import HyperparameterError, NonFiniteError, ProcessError, ReversalError, StateRangeError
from revtune.processes import Processes
from revtune.published import publish
from revtune.reversible.cells.cell import Cell, Coupling, Stage, Step, forget_gate
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.information_buffer import Buffer, default_share, ideal_bits
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.layers.cells import RevGRUCell, RevLSTMCell
from revtune.reversible.layers.modules import RevGRU, RevLSTM
from revtune.reversible.layers.scan import Recording, record, scan, unscan
from revtune.reversible.meter import meter
from revtune.reversible.streams.dropout import Embedding, LockedDropout
from revtune.reversible.streams.encode import rewind_encode
from revtune.reversible.streams.head_and_loss import Readout
from revtune.reversible.streams.loss import rewind_loss
from revtune.reversible.streams.outputs import rewind_outputs
from revtune.reversible.streams.penalties import ActivationPenalties
from revtune.reversible.streams.readout import LinearCrossEntropy
from revtune.tuning.conversion.convert import dropout_rates, self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.conversion.replay import replay
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between, Integer, Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedLockedDropout, TunedNoise
from revtune.tuning.responses.registered import register_response
from revtune.tuning.responses.weight_norm import weight_norm2
from revtune.tuning.tuner.mechanic import Mechanic
from revtune.tuning.tuner.tuner import Tuner

__version__ = "0.1.0"

__all__ = [
    "ActivationPenalties",
    "Between",
    "Buffer",
    "Cell",
    "Coupling",
    "Embedding",
    "HyperparameterError",
    "Hyperparameters",
    "Integer",
    "LinearCrossEntropy",
    "LockedDropout",
    "Mechanic",
    "NonFiniteError",
    "Positive",
    "ProcessError",
    "Processes",
    "Rate",
    "Readout",
    "Recording",
    "RevGRU",
    "RevGRUCell",
    "RevLSTM",
    "RevLSTMCell",
    "ReversalError",
    "Stage",
    "StateRangeError",
    "Step",
    "TunedLockedDropout",
    "TunedNoise",
    "Tuner",
    "default_share",
    "dropout_rates",
    "forget_gate",
    "frozen",
    "ideal_bits",
    "meter",
    "record",
    "register_response",
    "replay",
    "rev_gru",
    "rev_lstm",
    "rewind_encode",
    "rewind_loss",
    "rewind_outputs",
    "scan",
    "self_tuning",
    "unscan",
    "weight_norm2",
]


def __dir__() -> list[str]:
    """Public names and the two halves; doors such as `revtune.penalties` are imported by name."""
    return sorted([*__all__, "__version__", "reversible", "tuning"])


publish(globals(), __all__)
