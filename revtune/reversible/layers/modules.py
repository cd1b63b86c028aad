"""RevGRU and RevLSTM with the arguments of nn.GRU and nn.LSTM.

Shapes: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import torch
from torch import nn

from revtune.reversible.cells.cell import Cell
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Options


class RevGRU(RevRNN):
    """A multi-layer RevGRU: nn.GRU's arguments, shapes and manners, trained by rewinding.

    Each layer splits its state into halves and updates each from the other (MacKay et al. 2018, section 3.1;
    `cells.rev_gru`)::

        z1, r1 = sigmoid(W1 [x; h2] + b)    g1 = tanh(U1 [x; r1 * h2] + b)    h1 <- z1 * h1 + (1 - z1) * g1
        then h2 in the same way from the new h1;  y = [h1; h2]

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in nn.GRU;
            hidden_size even, dtype float32 or float64.
        max_forget_bits: the most bits a unit may forget a step; any positive number, or None for no limit.
        forgetting: False gives NF-RevGRU, which stores nothing and cannot forget.
        output: "all" returns the top layer's outputs of all steps; "last" each direction's last one, (B, D * H), and
            no per-step output ever exists.
        backend: "auto"; "reference", the plain torch path; "native", the C++ kernel or an error; "triton", the kernel
            for NVIDIA GPUs, which was never run on one yet.
        input_dropout, hidden_dropout, output_dropout: rates of locked dropout on the first layer's input, on the state
            as the recurrent products read it, and on the top layer's output; one mask a sequence.
        weight_drop: rate of dropout on the recurrent weights, one mask a sequence (Merity et al. 2018).
        proj_size: must be 0.

    Shape:
        `y, h_n = rnn(x, h_0)` with x (T, B, I), or (B, T, I) if batch_first, or (T, I), or a PackedSequence; h_0 and
        h_n (L * D, B, H). A float64 h_0 is an exact state and gives an exact float64 h_n. `rnn(x, h_0, resets=)` begins
        a row anew before the steps where resets (T, B) bool, or (B, T) if batch_first, is true, from `reset_state=`,
        (L * D, B, H) or (L * D, 1, H), zeros by default; `offsets=` in place of it are the cumulative lengths, from 0
        to T, of documents packed into a batch of one row (docs/resets.md). Parameters: weight_ih_l0
        (3H, I), weight_hh_l0 (3H, H/2), bias_ih_l0, bias_hh_l0 (3H,), rows z1 r1 g1 z2 r2 g2; not interchangeable with
        nn.GRU's.

    Raises:
        ValueError: arguments, shapes, dtypes or devices do not fit.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`.

    Example:
        >>> rnn = RevGRU(8, 16, num_layers=2)
        >>> y, h_n = rnn(torch.randn(5, 3, 8))
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 16]), torch.Size([2, 3, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_forget_bits: float | None = 3.0,
        forgetting: bool = True,
        output: str = "all",
        backend: str = "auto",
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_drop: float = 0.0,
        proj_size: int = 0,
    ) -> None:
        _refuse_projection(proj_size)
        options = Options(
            max_forget_bits, forgetting, output, backend, input_dropout, hidden_dropout, output_dropout, weight_drop
        ).checked()
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype)
        super().__init__(*sizes, options=options)

    mode = "GRU"

    @staticmethod
    def cell_of(options: Options) -> Cell:
        """The cell that the options describe."""
        return rev_gru(options.max_forget_bits, forgetting=options.forgetting)


class RevLSTM(RevRNN):
    """A multi-layer RevLSTM: nn.LSTM's arguments, shapes and manners, trained by rewinding.

    Each layer splits both states into halves and updates each from the other (MacKay et al. 2018, section 3.1;
    `cells.rev_lstm`)::

        f, p, i, o = sigmoid(A1 [x; h2] + b)    g = tanh(A1' [x; h2] + b)
        c1 <- f * c1 + i * g    h1 <- p * h1 + (1 - p) * o * tanh(c1)
        then c2, h2 in the same way from the new h1;  y = [h1; h2]

    Args:
        bounded: False takes the paper's own update, h1 <- p * h1 + o * tanh(c1), whose states may run away
            (docs/revlstm.md).
        All others as in `RevGRU`, in nn.LSTM's order. `proj_size` must be 0: a projected state cannot be rewound.

    Shape:
        `y, (h_n, c_n) = rnn(x, (h_0, c_0))`, shapes as in `RevGRU`. Parameters: weight_ih_l0 (5H, I), weight_hh_l0
        (5H, H/2), bias_ih_l0, bias_hh_l0 (5H,), rows f1 p1 i1 o1 g1 f2 p2 i2 o2 g2; not interchangeable with nn.LSTM's.

    Raises:
        As `RevGRU`.

    Example:
        >>> y, (h_n, c_n) = RevLSTM(8, 16)(torch.randn(5, 3, 8))
        >>> y.shape, c_n.shape
        (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_forget_bits: float | None = 3.0,
        forgetting: bool = True,
        bounded: bool = True,
        output: str = "all",
        backend: str = "auto",
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_drop: float = 0.0,
    ) -> None:
        _refuse_projection(proj_size)
        options = Options(
            max_forget_bits, forgetting, output, backend, input_dropout, hidden_dropout, output_dropout, weight_drop,
            bounded,
        ).checked()  # fmt: skip
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype)
        super().__init__(*sizes, options=options)

    mode = "LSTM"
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size

    @staticmethod
    def cell_of(options: Options) -> Cell:
        """The cell that the options describe."""
        return rev_lstm(options.max_forget_bits, forgetting=options.forgetting, bounded=options.bounded)


def _refuse_projection(proj_size: int) -> None:
    if proj_size:
        raise ValueError(
            f"proj_size is not supported: a projected state cannot be rewound; proj_size must be 0, got {proj_size}"
        )
