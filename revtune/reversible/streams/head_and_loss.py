"""A readout that tells where the prediction ends and the loss begins."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Readout(nn.Module):
    """A readout in two parts, `loss(head(y), targets)`.

    Any function of that value reads out as well. Delta-STN must know the parts, since the prediction that it trains
    responses by is linear in them, while the loss of that prediction is not.

    Args:
        head: gives the prediction (N, ...) of outputs y (N, H), and of the context if there is one; any module or
            function.
        loss: gives the summed loss of a prediction and targets (N, ...), such as
            `torch.nn.CrossEntropyLoss(reduction="sum")`.

    Raises:
        ValueError: a part cannot be called.

    Example:
        >>> readout = Readout(torch.nn.Linear(4, 10), torch.nn.CrossEntropyLoss(reduction="sum"))
        >>> readout(torch.randn(6, 4), torch.arange(6)).shape
        torch.Size([])
    """

    def __init__(self, head: Callable[..., Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        for name, part in (("head", head), ("loss", loss)):
            if not callable(part):
                raise ValueError(f"Readout: {name} must be a module or a function, got {type(part).__name__}")
        self.head, self.loss = head, loss

    def forward(self, y: Tensor, targets: Tensor, *context: Tensor) -> Tensor:
        """The summed loss of these positions."""
        return self.loss(self.head(y, *context), targets)
