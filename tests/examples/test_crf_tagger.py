"""It tags, and its chain is that of all rows of tags."""

import torch

from examples import crf_tagger


def test_a_crf_tags_and_breaks_no_rule() -> None:
    torch.manual_seed(0)
    tagger = crf_tagger.Tagger(20)
    losses = list(crf_tagger.train(tagger, 40))
    share, broken = crf_tagger.right(tagger)
    assert losses[-1] < 0.7 * losses[0] and share > 0.7 and not broken


def test_the_crfs_loss_and_best_tags_are_those_of_all_rows_of_tags() -> None:
    """Beside every row of tags that there is, of a few steps."""
    torch.manual_seed(1)
    chain, steps, lengths = crf_tagger.Chain(3).double(), 4, torch.tensor([4, 2])
    torch.nn.init.normal_(chain.moves), torch.nn.init.normal_(chain.first)
    scores, tags = torch.randn(steps, 2, 3, dtype=torch.float64), torch.randint(3, (steps, 2))
    rows = torch.cartesian_prod(*[torch.arange(3)] * steps)

    def score(row: torch.Tensor, which: int) -> torch.Tensor:
        last = int(lengths[which])
        moved = sum((chain.moves[row[t - 1], row[t]] for t in range(1, last)), chain.first[row[0]])
        return moved + scores[torch.arange(last), which, row[:last]].sum()

    total, best = torch.zeros((), dtype=torch.float64), chain.best(scores, lengths)
    for which, last in enumerate(lengths.tolist()):
        different = rows[:, :last].unique(dim=0)
        each = torch.stack([score(row, which) for row in different])
        total = total + each.logsumexp(0) - score(tags[:, which], which)
        assert torch.equal(best[:last, which], different[each.argmax()])
    torch.testing.assert_close(chain(scores, tags, lengths), total / lengths.sum())
