"""What code written for torch's recurrent layers reads of one: nn.RNNBase's attributes and checks, in its meanings."""

from __future__ import annotations

from torch import Tensor, nn


class FlatWeights(nn.RNNBase):
    """A recurrent layer whose lists of weights are read off its parameters at each look.

    nn.RNNBase keeps such lists beside the parameters, for cuDNN; a weight that is computed anew would grow stale there.
    """

    proj_size = 0
    directions: int

    __setattr__ = nn.Module.__setattr__  # type: ignore[assignment]
    _apply = nn.Module._apply
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def flatten_parameters(self) -> None:
        """There is nothing to flatten; here so that code written for nn.GRU runs."""

    def _init_flat_weights(self) -> None:
        """There are no lists to fill."""

    def _weights_have_changed(self) -> bool:
        """Whether the lists of weights are of other parameters than the present ones: never."""
        return False

    @property
    def _all_weights(self) -> list[list[str]]:  # type: ignore[override]
        """The names of the parameters of each layer and direction, in nn.GRU's order."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        suffixes = (suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer))
        return [[name + suffix for name in names] for suffix in suffixes]

    @property
    def _flat_weights_names(self) -> list[str]:  # type: ignore[override]
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor | None]:  # type: ignore[override]
        return [getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction, in nn.GRU's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]
