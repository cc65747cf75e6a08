"""``fastrnn task``: the sequences, what is known about them, the training, and the command."""

import json
import math
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import language, main, task
from fastrnn.cli.task import sequences, tasks, training
from fastrnn.cli.text import Text
from fastrnn.train import Linear

VERSES = "In the beginning God created the heaven and the earth.\nAnd God said, Let there be light.\n" * 40


class TestSequences:
    @pytest.mark.parametrize("length", [2, 3, 11, 150])
    def test_adding(self, rng, length):
        x, targets = sequences.adding(rng, length, 400)
        values, markers = x[..., 0], x[..., 1]
        assert x.shape == (length, 400, 2)
        assert x.dtype == targets.dtype == np.float32
        assert 0 <= values.min() < values.max() < 1
        assert np.isin(markers, (0, 1)).all()
        assert (markers[: length // 2].sum(axis=0) == 1).all()
        assert (markers[length // 2 :].sum(axis=0) == 1).all()
        assert (markers.any(axis=1)).all()  # every step is marked in some sequence
        for j in range(400):
            one, other = np.flatnonzero(markers[:, j])
            assert targets[0, j, 0] == values[one, j] + values[other, j]
        assert targets.shape == (1, 400, 1)

    def test_sum(self, rng):
        x, targets = sequences.summing(rng, 50, 400)
        total = x[..., 0].astype(np.float64).sum(axis=0)
        assert targets.shape == (1, 400, 1)
        np.testing.assert_allclose(targets[0, :, 0], math.sqrt(2 / 50) * (total - 25), rtol=1e-6, atol=1e-6)
        assert (x[..., 1].sum(axis=0) == 2).all()

    @pytest.mark.parametrize("lag", [1, 2, 30])
    def test_copy(self, rng, lag):
        x, targets = sequences.copying(rng, lag, 300)
        assert x.shape == (lag + 20, 300, 10)
        assert targets.shape == (lag + 20, 300)
        assert (x.sum(axis=2) == 1).all()
        shown = x.argmax(axis=2)
        assert set(np.unique(shown[:10])) == set(range(8))
        assert (shown[10 : lag + 9] == 8).all()
        assert (shown[lag + 9] == 9).all()
        assert (shown[lag + 10 :] == 8).all()
        assert (targets[: lag + 10] == 8).all()
        np.testing.assert_array_equal(targets[lag + 10 :], shown[:10])

    @pytest.mark.parametrize("draw", [sequences.adding, sequences.summing, sequences.copying])
    def test_equal_generators_give_equal_sequences(self, draw):
        one, same, other = (draw(np.random.default_rng(seed), 20, 8) for seed in (1, 1, 2))
        for a, b, c in zip(one, same, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a != c).any()


class TestLevels:
    """What is said to be the loss of a network without memory, against that loss on many sequences.

    The tolerances are five standard errors of the mean of so many losses.
    """

    @pytest.mark.parametrize("draw", [sequences.adding, sequences.summing])
    def test_variance(self, draw, rng):
        targets = draw(rng, 40, 40_000).targets
        losses = np.square(targets.astype(np.float64) - (1 if draw is sequences.adding else 0))
        assert losses.mean() == pytest.approx(sequences.variance(), abs=5 * losses.std() / 200)

    def test_best_linear_is_that_of_least_squares(self, rng):
        x, targets = sequences.adding(rng, 10, 40_000)
        sums = np.column_stack([x[..., 0].sum(axis=0), np.ones(40_000)])
        weights, *_ = np.linalg.lstsq(sums, targets[0, :, 0], rcond=None)
        losses = np.square(sums @ weights - targets[0, :, 0])
        standard_error = losses.std() / 200
        assert losses.mean() == pytest.approx(sequences.best_linear(10), abs=5 * standard_error)
        assert sequences.variance() - sequences.best_linear(10) > 10 * standard_error  # or it would show nothing

    def test_no_memory_is_the_entropy_of_blanks_and_guesses(self, rng):
        targets = sequences.copying(rng, 30, 5).targets
        logits = np.full((50, 5, 10), -1e9)
        logits[:40, :, 8] = 0
        logits[40:, :, :8] = 0
        loss, _ = fastrnn.train.softmax_cross_entropy(logits, targets)
        assert loss.mean() == pytest.approx(sequences.no_memory(30), rel=1e-12)

    def test_counts_alone_is_the_entropy_of_the_frequencies(self, rng):
        symbols = sequences.copying(rng, 30, 20_000).targets[-10:]
        frequencies = (symbols[..., np.newaxis] == np.arange(8)).mean(axis=0)
        terms = np.log(frequencies, where=frequencies > 0, out=np.zeros_like(frequencies))
        losses = -(frequencies * terms).sum(axis=1) * 10 / 50
        standard_error = losses.std() / math.sqrt(20_000)
        assert losses.mean() == pytest.approx(sequences.counts_alone(30), abs=5 * standard_error)
        assert sequences.no_memory(30) - sequences.counts_alone(30) > 100 * standard_error

    def test_current_character_alone(self):
        codes = np.array([0, 1, 0, 1, 0, 1, 1])  # 0 is followed by 1 three times, 1 by 0 twice and by 1 once
        text = Text(["a", "b"], codes, np.array([0, 1, 1]))
        expected = -(math.log((3 + 1) / (3 + 2)) + math.log((1 + 1) / (3 + 2))) / 2
        assert language.no_memory(text) == pytest.approx(expected, rel=1e-12)


class Script:
    """A trainer whose losses are given."""

    def __init__(self, training, held_out):
        self.training, self.held_out = iter(training), iter(held_out)

    def step(self):
        return self._next(self.training)

    def _next(self, losses):
        loss = next(losses)
        if isinstance(loss, BaseException):
            raise loss
        return loss

    def evaluate(self):
        return self._next(self.held_out)


def fit(training_losses, held_out, steps=100, every=2, success=0.1):
    return training.fit(Script(training_losses, held_out), steps, every, success, lambda run: None)


class TestFit:
    def test_stops_when_success_is_firm(self):
        run = fit([1.0] * 100, [1, 0.05, 0.5, 0.05, 0.04, 0.03, 0.02])
        assert (run.status, run.solved_at, run.last_step) == ("solved", 6, 10)
        assert run.steps == [0, 2, 4, 6, 8, 10]

    def test_spends_its_budget(self):
        run = fit([3.0, 1.0, 2.0, 6.0, 5.0], [1, 0.5, 0.05, 0.05], steps=5)
        assert (run.status, run.solved_at, run.last_step) == ("not solved", None, 5)
        assert run.steps == [0, 2, 4, 5]
        assert run.training == [None, 2, 4, 5]

    def test_without_a_mark(self):
        run = fit([1.0] * 4, [0.0] * 3, steps=4, success=None)
        assert (run.status, run.solved_at, run.last_step) == ("done", None, 4)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, value):
        in_training = fit([1.0, 1.0, value], [1, 0.5], steps=5)
        held_out = fit([1.0, 1.0, 1.0, 1.0], [1, 0.5, value], steps=5)
        assert (in_training.status, in_training.last_step, in_training.held_out) == ("not finite", 3, [1, 0.5])
        assert (held_out.status, held_out.last_step, held_out.held_out) == ("not finite", 4, [1, 0.5])

    def test_interrupted(self):
        run = fit([1.0, 1.0, KeyboardInterrupt()], [1, 0.5])
        assert (run.status, run.last_step, run.held_out) == ("interrupted", 2, [1, 0.5])

    @pytest.mark.parametrize(("loss", "status"), [(math.nan, "not finite"), (KeyboardInterrupt(), "interrupted")])
    def test_ends_before_the_first_step(self, loss, status):
        run = fit([], [loss])
        assert (run.status, run.last_step, run.held_out, run.solved_at) == (status, 0, [], None)


class TestRecipes:
    @pytest.mark.parametrize("name", tasks.RECIPES)
    def test_layer(self, name):
        layer = tasks.RECIPES[name].layer(2, 5, 100, seed=1)
        again = tasks.RECIPES[name].layer(2, 5, 100, seed=1)
        assert (layer.input_size, layer.hidden_size, layer.num_layers) == (2, 5, 1)
        for key, value in layer.params.items():
            np.testing.assert_array_equal(value, again.params[key])

    def test_chrono_is_of_the_lag(self):
        """log u with u from U(1, lag - 1)."""
        for lag, least, most in ((3, 0, math.log(2)), (1000, math.log(2), math.log(999))):
            bias = tasks.RECIPES["lstm"].layer(2, 500, lag, seed=1).params["bias_ih_l0"][500:1000]
            assert 0 <= bias.min() <= bias.max() <= most
            assert bias.max() > least
        tasks.RECIPES["lstm"].layer(2, 5, 1, seed=1)

    def test_input_gate_of_1997(self):
        params = tasks.RECIPES["lstm-original"].layer(2, 5, 100, seed=1).params
        bias = params["bias_ih_l0"] + params["bias_hh_l0"]
        assert (bias[:5] == -4).all()
        assert (abs(bias[5:]) < 1).all()


class TestSequenceTrainer:
    @pytest.mark.parametrize("draw", [sequences.adding, sequences.copying])
    def test_training_lowers_the_loss(self, draw):
        held_out = draw(np.random.default_rng(0), 5, 600)
        inputs = held_out.x.shape[2]
        outputs = 1 if draw is sequences.adding else inputs
        trainer = training.SequenceTrainer(
            fastrnn.GRU(inputs, 16, seed=1),
            Linear(16, outputs, seed=2),
            lambda rng: draw(rng, 5, 16),
            held_out,
            lr=1e-2,
            seed=3,
        )
        untrained = trainer.evaluate()
        for _ in range(200):
            trainer.step()
        assert trainer.evaluate() < untrained / 2

    def test_the_gradient_is_that_of_the_loss(self, rng, monkeypatch):
        """What the optimiser gets, against central differences."""
        monkeypatch.setattr(training, "MAX_GRAD_NORM", math.inf)
        batch = sequences.adding(rng, 6, 4)
        layer, head = fastrnn.RNN(2, 3, seed=1, dtype=np.float64), Linear(3, 1, dtype=np.float64, seed=2)
        trainer = training.SequenceTrainer(layer, head, lambda _: batch, batch, lr=0.0, seed=0)
        seen = {}
        trainer.optimizer.step = seen.update
        trainer.step()
        for name, value in trainer.optimizer.params.items():
            place, step = (0,) * value.ndim, 1e-6
            losses = []
            for sign in (1, -1):
                value[place] += sign * step
                losses.append(trainer.evaluate())
                value[place] -= sign * step
            assert seen[name][place] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-9)


class TestFlow:
    def test_is_that_of_gradient_flow_by_lag(self, rng):
        layer, x = fastrnn.GRU(2, 5, dtype=np.float64, seed=0), rng.random((12, 3, 2))
        whole = fastrnn.gradient_flow(layer, x, np.zeros((12, 3, 5))).flow
        assert training.flow(layer, x) == np.median(whole, axis=1)[::-1].tolist()

    def test_of_states_that_overflow_there_is_none(self):
        layer = fastrnn.RNN(1, 2, nonlinearity="identity", seed=0)
        layer.params["weight_hh_l0"] = 1e20 * np.eye(2)
        assert training.flow(layer, np.ones((9, 1, 1), np.float32)) == []


@pytest.fixture
def run_task(tmp_path, monkeypatch):
    """The command on tiny sizes; what it wrote as JSON."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tasks, "HELD_OUT", 20)
    text = tmp_path / "text.txt"
    text.write_text(VERSES, encoding="utf-8")

    draw = task.plot.draw

    def run_it(name, *options, status=0, plot=False):
        monkeypatch.setattr(task.plot, "draw", draw if plot else lambda *_: None)
        path = tmp_path / "out.json"
        sizes = ["--length", "6", "--hidden", "4", "--batch", "3", "--steps", "4", "--threads", "1"]
        text_option = ["--text", str(text)] if name == "chars" else []
        files = ["--json", str(path), "--out", str(tmp_path / "plot.png")]
        assert main(["task", name, *sizes, *text_option, *files, *map(str, options)]) == status
        return json.loads(path.read_text())

    return run_it


def without_times(figures):
    for result in figures["results"]:
        del result["seconds"]
    return figures


class TestCommand:
    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_table_json_and_plot(self, name, run_task, tmp_path, capsys):
        figures = run_task(name, plot=True)
        out = capsys.readouterr().out
        assert [result["cell"] for result in figures["results"]] == list(tasks.TASKS[name].cells)
        assert (figures["task"], figures["length"], figures["hidden"], figures["batch"]) == (name, 6, 4, 3)
        assert figures["machine"]["isa"] == fastrnn._core.get_isa()
        for result in figures["results"]:
            assert result["title"] in out
            assert result["curve"]["step"] == [0, 1, 2, 3, 4][: result["last_step"] + 1]
            assert len(result["curve"]["held_out"]) == len(result["curve"]["training"]) == result["last_step"] + 1
            assert result["held_out"] == result["curve"]["held_out"][-1] > 0
            assert result["status"] == ("done" if name == "chars" else "not solved")
            assert len(result["flow"]["initial"]) == len(result["flow"]["trained"]) > 1
            assert (result["sample"] is not None) == (name == "chars")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    def test_chars_writes(self, run_task, capsys):
        figures = run_task("chars", "--cell", "gru")
        (result,) = figures["results"]
        assert len(result["sample"]) == task.SAMPLE
        assert set(result["sample"]) <= set(VERSES)
        assert result["sample"] in capsys.readouterr().out
        assert figures["levels"]["uniform guess"] == pytest.approx(math.log2(len(set(VERSES))))

    def test_chars_of_the_least_text(self, run_task, tmp_path):
        path = tmp_path / "short.txt"
        path.write_text("ab" * 50)
        options = ["--text", path, "--length", 1, "--batch", 1]
        assert run_task("chars", *options, plot=True)["levels"]["uniform guess"] == 1
        path.write_text("ab" * 49)
        assert main(["task", "chars", *map(str, options)]) == 2

    def test_interrupted_at_once(self, run_task, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(training.SequenceTrainer, "evaluate", interrupt)
        (result,) = run_task("adding", status=130, plot=True)["results"]
        assert (result["status"], result["held_out"], result["last_step"]) == ("interrupted", None, 0)

    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_same_seed_same_figures(self, name, run_task):
        one, same, other = (without_times(run_task(name, "--cell", "lstm", "--seed", seed)) for seed in (5, 5, 6))
        assert one == same
        assert one["results"] != other["results"]

    def test_every_cell_in_the_order_asked_for_and_once(self, run_task):
        names = [*reversed(tasks.RECIPES), "rnn"]
        figures = run_task("adding", "--cell", ",".join(names))
        assert [result["cell"] for result in figures["results"]] == names[:-1]

    def test_parameters_are_counted(self, run_task):
        (result,) = run_task("adding", "--cell", "lstm")["results"]
        assert result["parameters"] == 4 * (4 * 2 + 4 * 4 + 4 + 4) + 4 + 1

    def test_a_loss_that_is_not_finite_stops_the_cell_alone(self, run_task, monkeypatch, capsys):
        hot = tasks.RECIPES["cec"]._replace(lr=1e30)
        monkeypatch.setitem(tasks.RECIPES, "cec", hot)
        figures = run_task("sum", "--cell", "cec,gru", plot=True)
        assert [result["status"] for result in figures["results"]] == ["not finite", "not solved"]
        assert "the loss is not finite at step" in capsys.readouterr().out

    def test_ctrl_c_keeps_what_there_is(self, run_task, monkeypatch, capsys, tmp_path):
        step, calls = training.SequenceTrainer.step, []

        def interrupted_step(trainer):
            calls.append(trainer)
            if len(calls) > 6:
                raise KeyboardInterrupt
            return step(trainer)

        monkeypatch.setattr(training.SequenceTrainer, "step", interrupted_step)
        figures = run_task("adding", "--cell", "rnn,gru,lstm", status=130, plot=True)
        assert [result["status"] for result in figures["results"]] == ["not solved", "interrupted"]
        assert figures["results"][1]["last_step"] == 2
        assert (tmp_path / "plot.png").exists()
        assert "interrupted" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--cell", "perceptron"],
            ["--cell", "rnn,"],
            ["--length", "1"],
            ["--hidden", "0"],
            ["--batch", "-1"],
            ["--steps", "0"],
            ["--seed", "one"],
            ["--text", "file"],
        ],
    )
    def test_bad_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["task", "adding", *arguments])
        assert arguments[0] in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["task"], ["task", "juggling"]])
    def test_no_such_task(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "TASK" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["chars", "--text", "{}/none"], "--text: cannot read"),
            (["adding", "--json", "{}/none/out.json"], "--json: cannot write"),
            (["adding", "--out", "{}/none/out.png"], "--out: cannot write"),
            (["adding", "--out", "{}/plot.gif"], "--out: expected a file that ends in .png"),
        ],
    )
    def test_unusable_files_are_found_before_training(self, arguments, message, tmp_path, capsys, monkeypatch):
        pytest.importorskip("matplotlib")
        monkeypatch.setattr(task, "fit", None)
        assert main(["task", *(argument.format(tmp_path) for argument in arguments)]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("package", ["tqdm", "matplotlib"])
    def test_missing_package_names_the_extra(self, package, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["task", "adding"]) == 2
        assert f"needs {package}; install it with: pip install 'fastrnn[cli]'" in capsys.readouterr().err
