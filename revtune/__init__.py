"""revtune: recurrent nets that rewind instead of remembering.

Where things are, from numbers to training steps:

- `fixed`, `buffer`: fixed-point states and the information buffer that makes forgetting reversible
- `cells`: couplings, stages and the four cells; how to write one's own
- `tape`, `stack`, `scan`: a cell over time, layers together, and rewinding as one autograd function
- `rnn`, `layers`: RevGRU and RevLSTM with nn.GRU's and nn.LSTM's manners
- `readout`, `dropout`, `stream`: whole training steps chunk by chunk
- `meter`: memory and bits of a block of code
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
