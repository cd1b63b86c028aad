"""revtune: recurrent nets that rewind instead of remembering, and networks that tune their own hyperparameters.

Where things are, from numbers to training steps:

- `fixed`, `buffer`: fixed-point states and the information buffer that makes forgetting reversible
- `cells`: couplings, stages and the four cells; how to write one's own
- `weights`, `moments`, `tape`: a layer's products, one stage at one step with its gradient, and a cell over time
- `stack`, `scan`, `rewind`: layers together, and rewinding as one autograd function; `arguments`: what it accepts;
`transforms`: what it cannot go through
- `checks`, `environment`, `errors`: that it is exact, and what is said when it is not; `values`: numbers and switches
- `rnn`, `layers`: RevGRU and RevLSTM with nn.GRU's and nn.LSTM's manners
- `stream`: whole training steps chunk by chunk; `ends`, `readout`, `dropout`, `replay`, `outside`, `sinks`:
encoders, readouts, their draws and gradients
- `encode`, `attention`: an encoder that rewinds, and what a decoder reads of it
- `meter`: memory and bits of a block of code, told by `metering`

And, with nothing of the above but `errors`, self-tuning:

- `hyper`, `hyperparameters`: kinds of hyperparameters, and the set that is tuned, with its perturbations
- `response`, `response_norm`, `response_rnn`: layers whose weights answer to hyperparameters; `response_kinds`: all of
them, and `response_own`: those of one's own
- `regularize`, `regularize_weights`, `regularize_images`, `augment`, `penalties`, `weight_norm`: what is tuned
- `drawn`, `loader`: augmentation in workers by values drawn in the main process
- `linearized`, `bilevel`: the gradients of both levels; `convert`: any network made self-tuning; `freeze`: plain again
- `tuner`: the alternation; `streams`, `history`: its batches, and what it did
"""

from revtune.errors import HyperparameterError, NonFiniteError, ReversalError, StateRangeError
from revtune.reversible.cells.buffer import Buffer, default_share, ideal_bits
from revtune.reversible.cells.cell import Cell, Coupling, Stage, Step, forget_gate
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.layers.modules import RevGRU, RevLSTM
from revtune.reversible.layers.scan import Recording, record, scan, unscan
from revtune.reversible.meter import meter
from revtune.reversible.streams.dropout import Embedding, LockedDropout
from revtune.reversible.streams.encode import rewind_encode
from revtune.reversible.streams.readout import LinearCrossEntropy
from revtune.reversible.streams.stream import rewind_loss
from revtune.tuning.conversion.convert import dropout_rates, self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between, Integer, Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedLockedDropout, TunedNoise
from revtune.tuning.responses.registered import register_response
from revtune.tuning.responses.weight_norm import weight_norm2
from revtune.tuning.tuner.tuner import Tuner

__version__ = "0.1.0"

__all__ = [
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
    "NonFiniteError",
    "Positive",
    "Rate",
    "Recording",
    "RevGRU",
    "RevLSTM",
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
    "rev_gru",
    "rev_lstm",
    "rewind_encode",
    "rewind_loss",
    "scan",
    "self_tuning",
    "unscan",
    "weight_norm2",
]
