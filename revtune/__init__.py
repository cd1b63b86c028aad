"""revtune: recurrent nets that rewind instead of remembering.

Where things are, from numbers to training steps:

- `fixed`, `buffer`: fixed-point states and the information buffer that makes forgetting reversible
- `cells`: couplings, stages and the four cells; how to write one's own
- `weights`, `moments`, `tape`: a layer's products, one stage at one step with its gradient, and a cell over time
- `stack`, `scan`: layers together, and rewinding as one autograd function; `arguments`: what it accepts
- `checks`, `environment`, `errors`: that it is exact, and what is said when it is not
- `rnn`, `layers`: RevGRU and RevLSTM with nn.GRU's and nn.LSTM's manners
- `stream`: whole training steps chunk by chunk; `ends`, `readout`, `dropout`, `sinks`: encoders, readouts and their
gradients
- `meter`: memory and bits of a block of code, told by `metering`
"""

from revtune.buffer import Buffer, default_share, ideal_bits
from revtune.cells import Cell, Coupling, Stage, Step, forget_gate, rev_gru, rev_lstm
from revtune.dropout import Embedding, LockedDropout
from revtune.errors import NonFiniteError, ReversalError, StateRangeError
from revtune.layers import RevGRU, RevLSTM
from revtune.meter import meter
from revtune.readout import LinearCrossEntropy
from revtune.scan import Recording, record, scan, unscan
from revtune.stream import rewind_loss

__version__ = "0.1.0"

__all__ = [
    "Buffer",
    "Cell",
    "Coupling",
    "Embedding",
    "LinearCrossEntropy",
    "LockedDropout",
    "NonFiniteError",
    "Recording",
    "RevGRU",
    "RevLSTM",
    "ReversalError",
    "Stage",
    "StateRangeError",
    "Step",
    "default_share",
    "forget_gate",
    "ideal_bits",
    "meter",
    "record",
    "rev_gru",
    "rev_lstm",
    "rewind_loss",
    "scan",
    "unscan",
]
