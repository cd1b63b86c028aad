"""The language model that tunes itself: what it reads, where its state goes, and that plain and tuned ones are one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.program.cli.main import main
from revtune.program.data import text_sources as sources
from revtune.program.data.vocabulary import split_words
from revtune.program.errors import Problem
from revtune.program.recipes import ptb_lstm
from revtune.program.recipes.ptb_lstm import PtbLstm, WordStudy
from revtune.program.runs.checkpoint import packed, unpacked
from revtune.program.runs.followed import Followed
from revtune.program.studies import tuned
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.contest import Contest, Options
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import METHODS, Learning, Method, Split
from revtune.program.tasks.tuned_learner import TunedLearner, learner
from revtune.program.tuning import Tuned, Tuning
from revtune.tuning.hypers.constants import Numbers
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass, Values
from tests.tiny_words import tiny, write_words

STILL: dict[str, Any] = {
    "learning": Learning(batch=4, lr=1e-30, momentum=0.0), "delta": Tuning(warmup=0, ratio=1, hyper_lr=1e-30,
                                                                            tune_scales=False),
}  # fmt: skip
RESULTS = Path(__file__).parents[3] / "benchmarks/results"
TUNERS: tuple[Tuned, ...] = ("stn", "delta")


@pytest.fixture
def study(tmp_path: Path) -> WordStudy:
    write_words(tmp_path)
    return tiny(tmp_path)


def learnt(task: PtbLstm, method: Method, steps: int) -> Learner:
    one = learner(task, method)
    go_on(one, steps)
    return one


def go_on(one: Learner, steps: int) -> None:
    while one.steps < steps:
        one.step()
        if one.steps % 2 == 0:
            one.validate()


def ran(model: Any, rows: Tensor, first: int, last: int) -> Any:
    """The state of a network in evaluation that has read these rows of streams."""
    return model.eval()(rows[first:last].long())[1]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_segments_are_the_text_in_order_and_say_where_it_begins(study: WordStudy) -> None:
    task = PtbLstm(study)
    words: Any = task.corpus.vocabulary
    read = [task.train_batch(step) for step in range(44)]
    assert [step for step, batch in enumerate(read) if batch.first] == [0, 22]
    stream = torch.cat([batch.inputs for batch in read[:22]])[:, 1]
    assert stream.tolist() == task.corpus.train[110:219].tolist()
    assert torch.equal(torch.cat([batch.targets for batch in read[:22]])[:-1, 1], stream[1:])
    assert torch.equal(read[3].inputs, read[25].inputs)
    text = (study.data or Path()).joinpath("ptb/ptb.valid.txt").read_text()
    assert task.corpus.valid.tolist() == words.numbers(split_words(text))
    assert [batch.first for batch in map(task.valid_batch, range(23))] == [True, *[False] * 10] * 2 + [True]


def test_a_part_of_the_text_is_its_beginning_and_the_rest_is_unknown(tmp_path: Path, study: WordStudy) -> None:
    whole, part = PtbLstm(study), PtbLstm(tiny(tmp_path, words=200, vocabulary=3))  # 198 of them are whole lines
    assert [len(one) for one in (part.corpus.train, part.corpus.valid, part.corpus.test)] == [198, 40, 110]
    known: Any = part.corpus.vocabulary
    names: Any = whole.corpus.vocabulary
    for one, other in zip(part.corpus.train[:30].tolist(), whole.corpus.train[:30].tolist(), strict=True):
        word = names.words[other]
        assert known.words[one] == (word if word in known.words else "<unk>")
    assert whole.digest() != part.digest()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["lstm", "gru", "revlstm", "revgru"])
def test_it_learns_by_every_method_and_goes_on_bit_for_bit(method: Method, model: Any, study: WordStudy) -> None:
    task = PtbLstm(dataclasses.replace(study, model=model))
    whole, first = learnt(task, method, 5), learnt(task, method, 2)
    starts = dict.fromkeys(task.hypers(), 0.05)
    assert starts.keys() == task.spaces().keys() and len(starts) == 7
    assert [name for name in starts if whole.values()[name] != starts[name]] == ([] if method == "plain" else [*starts])
    saved = packed(first.state())
    torch.manual_seed(99)
    second = learner(task, method)
    second.restore(unpacked(saved))
    go_on(second, 5)
    assert second.progress == whole.progress and second.values() == whole.values()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[name]), name


def test_a_plain_reversible_network_is_at_the_constants_also_once_they_change(study: WordStudy) -> None:
    task = PtbLstm(dataclasses.replace(study, model="revlstm"))
    values = {name: 0.1 * (1 + place) for place, name in enumerate(task.hypers())}
    one: Any = PlainLearner(task, values)
    rnn = one.model.rnn
    assert (rnn.options.input_dropout, rnn.dropout, rnn.options.output_dropout) == pytest.approx((0.1, 0.2, 0.3))
    assert (one.model.words.dropout, rnn.options.weight_drop) == pytest.approx((0.4, 0.5))
    one.hypers.put({"rnn.dropout": 0.05, "words.dropout": 0.0})
    assert (rnn.dropout, one.model.words.dropout, rnn.options.weight_drop) == pytest.approx((0.05, 0.0, 0.5))
    batch = task.train_batch(0)
    torch.manual_seed(5)
    penalized, _ = task.streamed_loss(one.model.train(), batch, None, one.hypers.numbers)
    torch.manual_seed(5)
    alone, _ = task.streamed_loss(one.model, batch, None, Numbers(activation=0.0, temporal=0.0))
    assert penalized > alone + 1e-6


def test_a_tuned_reversible_network_is_evaluated_as_the_plain_one_that_it_is_frozen_to(study: WordStudy) -> None:
    task = PtbLstm(dataclasses.replace(study, model="revgru"))
    one, plain = learnt(task, "delta", 5), PlainLearner(task)
    plain.model.load_state_dict(one.weights(), strict=False)  # its readout has the weight of its words
    assert plain.figures("test") == pytest.approx(one.figures("test"), rel=1e-6)


def test_plain_and_tuned_networks_drop_and_penalize_alike(study: WordStudy) -> None:
    """In training, by the same masks, at the same values: 0.05 would hardly show."""
    task, values = PtbLstm(study), {name: 0.1 * (2 + place) for place, name in enumerate(PtbLstm(study).hypers())}
    tuned, plain = TunedLearner(task, "delta"), PlainLearner(task, values)
    plain.model.load_state_dict({name: p for name, p in tuned.model.named_parameters() if "response" not in name},
                                strict=False)  # fmt: skip
    hypers, batch = tuned.hypers, task.train_batch(0)
    logit = {name: torch.tensor(value).logit() for name, value in values.items()}
    penalty = {name: torch.tensor(values[name]).expm1().log() for name in ("activation", "temporal")}
    raw = torch.stack([{**logit, **penalty}[name] for name in hypers.names]).expand(4, -1)
    torch.manual_seed(5)
    out, _ = task.predict(plain.model.train(), batch, None)
    losses = task.train_loss(plain.model, out, batch, plain.hypers.numbers)
    torch.manual_seed(5)
    with hypers.bound(Pass(4, None, raw)):
        again, _ = task.predict(tuned.model.train(), batch, None)
        same(task.train_loss(tuned.model, again, batch, Values(hypers, raw)), losses)
    same(again.logits, out.logits)
    assert not torch.allclose(out.logits, task.predict(plain.model.eval(), batch, None)[0].logits, atol=1e-4)
    unpenalized = task.train_loss(plain.model, out, batch, Numbers(activation=0.0, temporal=0.0))
    assert (losses > unpenalized + 1e-6).all()


@pytest.mark.parametrize("method", TUNERS)
def test_a_step_on_held_out_text_sees_no_regularizer(method: Tuned, study: WordStudy) -> None:
    task = PtbLstm(study)
    one, batch = TunedLearner(task, method), task.valid_batch(0)
    before = PlainLearner(task).model.eval()
    logits = before(batch.inputs)[0].logits
    with torch.no_grad():
        one.hypers.raw.fill_(2.0)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert one.tuner.valid_step(batch) == pytest.approx(loss.item())


def test_the_state_goes_on_until_the_text_ends(tmp_path: Path, study: WordStudy) -> None:
    task = PtbLstm(tiny(tmp_path, **STILL))
    one = PlainLearner(task, dict.fromkeys(task.hypers(), 0.0))
    net = PlainLearner(task).model
    rows = task.part("train")
    for steps, begin, end in ((1, 0, 5), (3, 0, 15), (22, 0, 109), (24, 0, 10)):
        while one.steps < steps:
            one.step()
        same(one.state()["carried"], ran(net, rows, begin, end))


def test_held_out_text_has_a_state_of_its_own(tmp_path: Path, study: WordStudy) -> None:
    task, states = PtbLstm(tiny(tmp_path, **STILL)), list[dict[str, Any]]()
    for _ in range(2):
        one = TunedLearner(task, "delta")
        for _ in range(3):
            one.step()
        states.append(one.tuner.states)
        same(states[-1]["valid"], ran(PlainLearner(task).model, task.part("tuned_on"), 0, 15))
        task.rows["tuned_on"] = task.part("tuned_on").flip(0)
    train, valid = ([one[name][0][0] for one in states] for name in ("train", "valid"))
    assert torch.equal(*train) and not torch.equal(*valid)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_figures_are_of_a_whole_text_read_in_order(split: Split, study: WordStudy) -> None:
    task = PtbLstm(study)
    one = PlainLearner(task)
    rows = task.part(split).long()
    with torch.no_grad():
        logits = one.model.eval()(rows[:-1])[0].logits
    loss = F.cross_entropy(logits.flatten(0, 1), rows[1:].flatten())
    found = one.figures(split)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    with torch.no_grad():
        one.model.get_parameter("readout.bias")[0] = 1e9
    assert one.figures(split)["perplexity"] < float("inf")


def test_the_network_leaves_out_what_is_not_tuned(study: WordStudy) -> None:
    hypers = Hyperparameters(output_drop=PtbLstm(study).hypers()["output_drop"])
    net, words = ptb_lstm.WordNet(hypers, 10, 6), torch.zeros(3, 2, dtype=torch.int64)
    out = net.train()(words)[0]
    assert torch.equal(out.outputs, net.eval()(words)[0].outputs)
    assert not torch.equal(net.train()(torch.zeros(3, 99, dtype=torch.int64))[0].dropped, out.outputs)


def test_the_papers_settings() -> None:
    study = ptb_lstm.study("paper")
    assert (study.words, study.vocabulary, study.length, study.width) == (None, 10_000, 70, 650)
    learning, tuning = study.learning, study.stn
    told = (learning.batch, learning.optimizer, learning.lr, learning.momentum, learning.clip, learning.schedule)
    assert told == (40, "sgd", 30.0, 0.0, 0.25, "plateau")
    assert (tuning.optimizer, tuning.hyper_lr, tuning.scale, tuning.tune_scales) == ("adam", 0.01, 1.0, False)


def test_the_program_trains_evaluates_and_compares(
    tmp_path: Path, study: WordStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "--words 440 --width 4 --length 5 --batch 4 --valid-every 2 --steps 4 --delta.warmup 1".split()
    words = [*sizes, "--data", str(tmp_path), "--out"]
    for method in ("delta", "stn"):
        run = tmp_path / method
        assert main(["train", "ptb_lstm", "--method", method, "--stn.warmup", "1", *words, str(run)]) == 0
        assert main(["evaluate", str(run)]) == 0
        told = capsys.readouterr().out
        result = json.loads((run / "result.json").read_text())
        for split in ("valid", "test"):
            figures = result[split]
            assert f"\n{split}: loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.2f}\n" in told
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    who = ["--contestants", "plain", "stn", "delta", "final", "random", "--budget", "0.5", "--clock", "cpu"]
    assert main(["compare", "ptb_lstm", *words, str(tmp_path / "contest"), *who]) == 0
    assert "| perplexity | trials |" in (tmp_path / "contest/table.md").read_text()


def test_kept_runs_and_the_kept_contest_are_read_as_they_were_written(tmp_path: Path) -> None:
    """The contest's settings were written before there was `--model`, and it still is the same contest."""
    for name, model in (("lstm-seed-1", "lstm"), ("revlstm-seed-1", "revlstm")):
        recipe, method, kept = tuned.stored(RESULTS / "joint" / name)
        assert (recipe, method, kept.learning.steps) == ("ptb_lstm", "stn", 1430)
        assert isinstance(kept, WordStudy) and (kept.words, kept.model) == (200_000, model)
    before = json.loads((RESULTS / "compare/ptb_lstm/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(before))
    own = {name: before[name] for name in ("seeds", "budget", "clock", "size")}
    options = Options(study=ptb_lstm.study(), contestants=tuple(before["contestants"]), out=tmp_path, **own)
    Contest("ptb_lstm", options, tmp_path).keep()
    assert json.loads((tmp_path / "config.json").read_text()) == before
    other = dataclasses.replace(options, study=dataclasses.replace(options.study, model="gru"))
    with pytest.raises(Problem, match="holds a contest with other settings"):
        Contest("ptb_lstm", other, tmp_path).keep()


@pytest.mark.parametrize("model", ["lstm", "revlstm"])
def test_a_plain_run_replays_a_tuned_one_or_takes_its_last_values(
    tmp_path: Path, study: WordStudy, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out losses are those of a learner whose values are put by hand."""
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    study, task = dataclasses.replace(study, model=model), PtbLstm(dataclasses.replace(study, model=model))
    stn = tuned.start("ptb_lstm", tuned.Options(study=study, method="stn", out=tmp_path / "stn"))
    records = [json.loads(line) for line in (stn / "history.jsonl").read_text().splitlines()]
    starts = learner(task, "plain").values()

    def at(step: int) -> dict[str, float]:
        return {**starts, **next((each["values"] for each in reversed(records) if each["step"] <= step), {})}

    for name, followed, values in (
        ("replay", Followed(replay=stn), at),
        ("last", Followed(values_of=stn), lambda step: records[-1]["values"]),
    ):
        options = tuned.Options(study=study, method="plain", followed=followed, out=tmp_path / name)
        metrics = tuned.start("ptb_lstm", options) / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        one, found = learner(task, "plain", starts), list[float]()
        assert isinstance(one, PlainLearner)
        while one.steps < 6:
            one.hypers.put(values(one.steps))
            one.step()
            found += [one.validate()["loss"]] if one.steps % 2 == 0 else []
        assert [line["loss"] for line in lines] == found
        assert lines[-1]["values"] == values(5)
        assert json.loads((tmp_path / name / "config.json").read_text())["replays"] is True
    with pytest.raises(Problem, match="--replay is for a run that tunes nothing itself, got --method delta"):
        tuned.start("ptb_lstm", tuned.Options(study=study, followed=Followed(replay=stn), out=tmp_path / "no"))


def test_a_replaying_run_that_was_stopped_goes_on(
    tmp_path: Path, study: WordStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    stn = tuned.start("ptb_lstm", tuned.Options(study=study, method="stn", out=tmp_path / "stn"))
    options = tuned.Options(study=study, method="plain", followed=Followed(replay=stn), out=tmp_path / "whole")
    whole, part = tuned.start("ptb_lstm", options), tmp_path / "part"
    validate, calls = Learner.validate, iter(range(2))

    def stop(one: Learner) -> dict[str, float]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return validate(one)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "validate", stop)
        patch.setattr("revtune.program.tasks.loop.SAVE_SECONDS", -1.0)
        tuned.start("ptb_lstm", dataclasses.replace(options, out=part))
    tuned.resume(part)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, part)]
    assert results[0] == results[1]
    (part / "result.json").unlink()
    (part / "replayed.json").write_text((part / "replayed.json").read_text() + " ")
    with pytest.raises(Problem, match="replayed.json is not the file that "):
        tuned.resume(part)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"words": 441}, "--words must be at most 440 for ptb, got 441"),
        ({"learning": Learning(batch=120)}, "the valid text has 220 tokens, too few for 120 streams of at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_told(changes: dict[str, Any], told: str, tmp_path: Path, study: WordStudy) -> None:
    with pytest.raises(Problem, match=told):
        PtbLstm(tiny(tmp_path, **changes))


def test_a_missing_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: Any) -> Any:
        raise Problem(f"{name} was not found")

    monkeypatch.setattr(sources, "ask_hub", refuse)
    with pytest.raises(Problem, match="ptb was not found"):
        PtbLstm(tiny(tmp_path))
