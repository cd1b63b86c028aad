"""Tangents that are kept come back, the last first."""

import torch

from revtune.joint.tangent_starts import Moved, TangentStarts


def test_tangents_come_back_the_last_first() -> None:
    torch.manual_seed(1)
    starts, kept = TangentStarts(torch.device("cpu"), torch.float64), list[Moved]()
    for parts in ([], ["h"], ["h", "c"], ["h", "c"]):
        moved: Moved = [{part: torch.randn(2, 3, dtype=torch.float64) for part in parts} for _ in range(2)]
        kept.append([{part: tangent.clone() for part, tangent in layer.items()} for layer in moved])
        starts.push(moved)
        for layer in moved:
            for tangent in layer.values():
                tangent.zero_()  # what was given may change
    while kept:
        assert starts
        back, wanted = starts.pop(), kept.pop()
        assert [set(layer) for layer in back] == [set(layer) for layer in wanted]
        for layer, other in zip(back, wanted, strict=True):
            assert all(torch.equal(layer[part], tangent) for part, tangent in other.items())
    assert not starts
