"""Pictures of gradient flows, and `fastrnn flow`."""

import json
import re
import sys

import matplotlib.image
import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.cli import flow as command
from fastrnn.cli import main
from fastrnn.cli.text import load_text
from fastrnn.flow import plot

VERSES = "In the beginning God created the heaven and the earth.\nAnd God said, Let there be light.\n" * 9
ALPHABET = len(set(VERSES))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(VERSES, encoding="utf-8")
    return path


def run(*arguments):
    return main(["flow", "--hidden", "6", "--steps", "25", "--batch", "2", *map(str, arguments)])


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of other things: a picture takes a second."""
    monkeypatch.setattr(plot, "save_one", lambda flow, path: None)
    monkeypatch.setattr(plot, "save_several", lambda flows, path, subtitle: None)


def is_picture(path):
    """A picture with something on it: no single colour."""
    pixels = matplotlib.image.imread(path)
    return pixels.ndim == 3 and min(pixels.shape[:2]) > 500 and pixels[..., :3].std() > 0.05


def flow_of(layer, rng, steps=30, batch=3, lengths=None, size=1.0, **options):
    x = rng.standard_normal((steps, batch, layer.input_size))
    dy = size * np.ones((steps, batch, layer.hidden_size))
    return reference.gradient_flow(layer, x, dy, lengths=lengths, **options)


class TestPlot:
    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            ("RNN", {"nonlinearity": "relu", "init": {"identity": 0.0}}),  # a flow of zeros
            ("RNN", {"nonlinearity": "identity", "init": {"identity": 1e40}, "bias": False, "dtype": np.float64}),
            ("LSTM", {}),
            ("CEC", {"readout": "tanh"}),
        ],
    )
    def test_every_cell(self, cls, options, tmp_path, rng):
        layer = getattr(fastrnn, cls)(4, 5, seed=0, **options)
        if "identity" in str(options.get("nonlinearity")):
            layer.params["weight_ih_l0"][...] = 0  # the states stay 0, and the gradients run away to infinity
        flow = flow_of(layer, rng, lengths=(30, 0, 7))
        before = dict(matplotlib.rcParams)
        flow.plot(tmp_path / "flow.png")
        assert is_picture(tmp_path / "flow.png")
        assert dict(matplotlib.rcParams) == before

    @pytest.mark.parametrize(("steps", "batch", "size"), [(0, 2, 1), (1, 1, 0), (3, 0, 1)])
    def test_little_or_nothing_to_show(self, steps, batch, size, tmp_path, rng):
        flow = flow_of(fastrnn.GRU(4, 5, seed=0), rng, steps, batch, size=size)
        flow.plot(tmp_path / "flow.png")
        assert is_picture(tmp_path / "flow.png")

    @pytest.mark.parametrize(("name", "start"), [("flow.svg", b"<?xml"), ("flow", b"\x89PNG")])
    def test_formats_and_names(self, name, start, tmp_path, rng):
        path = tmp_path / name
        flow_of(fastrnn.GRU(4, 5), rng).plot(str(path))
        assert path.read_bytes().startswith(start)

    def test_a_format_that_there_is_not(self, tmp_path, rng):
        with pytest.raises(ValueError, match=r"^path: expected an ending of .*png.*, got '.*flow\.gif2'"):
            flow_of(fastrnn.GRU(4, 5), rng).plot(tmp_path / "flow.gif2")
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib(self, monkeypatch, tmp_path, rng):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install 'fastrnn\[cli\]'"):
            flow_of(fastrnn.RNN(4, 5), rng).plot(tmp_path / "flow.png")


def test_flow_by_lag(rng):
    """Row k is k steps before each sequence's own end, and the bound is above the flow there."""
    flow = flow_of(fastrnn.RNN(4, 5, seed=0), rng, lengths=[30, 0, 7])
    values, bound = plot.by_lag(flow), plot.bound_by_lag(flow)
    for b, n in enumerate(flow.lengths):
        np.testing.assert_array_equal(values[: n + 1, b], flow.flow[: n + 1, b][::-1])
        assert np.isnan(values[n + 1 :, b]).all()
        assert np.isnan(bound[n + 1 :, b]).all()
        assert (values[: n + 1, b] <= bound[: n + 1, b] * (1 + 1e-12)).all()
    np.testing.assert_allclose(bound[1, 0], flow.bound[-1, 0])


def test_shares(rng):
    flow = flow_of(fastrnn.RNN(4, 5, seed=0), rng)
    share = plot.shares(flow)
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(share / share[0], flow.lag_gradient / flow.lag_gradient[0])
    assert not plot.shares(flow_of(fastrnn.RNN(4, 5), rng, size=0)).any()


@pytest.mark.parametrize(
    ("heights", "want"),
    [
        ([], []),
        ([5], [5]),
        ([5, 1], [5, 1]),
        ([5, 5, 5], [5, 4, 3]),
        ([0, 0, 0], [2, 1, 0]),
        ([12, -3], [10, 0]),
        ([0.5, 1, 9], [0.0, 1, 9]),
    ],
)
def test_labels_do_not_overlap(heights, want):
    np.testing.assert_allclose(plot.spread(heights, 1, 0, 10), want)


class TestComparison:
    def test_table_picture_and_json(self, tmp_path, capsys):
        picture, values = tmp_path / "flow.png", tmp_path / "flow.json"
        assert run("--out", picture, "--json", values) == 0
        assert is_picture(picture)
        flows = json.loads(values.read_text())
        assert list(flows) == list(command.CONTENDERS)
        table = capsys.readouterr().out.splitlines()
        assert table[0].split() == ["gamma", "flow", "at", "10", "flow", "at", "25", "horizon", "verdict"]
        for (name, flow), line in zip(flows.items(), table[1:], strict=False):
            *_, last, horizon, verdict = line.removeprefix(name).split()
            assert verdict == flow["verdict"]
            assert float(horizon) == np.median(flow["horizon"])
            assert float(last) == pytest.approx(np.median(flow["flow"][0]), rel=0.01)
            assert np.shape(flow["gamma"]) == (25, 2)
        assert np.all(np.array(flows["CEC"]["flow"]) == 1)
        assert flows["Elman"]["verdict"] == "vanishing"
        assert flows["CEC"]["verdict"] == "stable"

    def test_own_text_and_seed(self, text_file, tmp_path, no_pictures):
        def values(seed):
            run("--text", text_file, "--seed", seed, "--out", tmp_path / "a.svg", "--json", tmp_path / "a.json")
            return json.loads((tmp_path / "a.json").read_text())

        assert values(1) == values(1) != values(2)


class TestModel:
    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
            ("CEC", {}),
            ("GRU", {"dropout": 0.3}),
        ],
    )
    def test_saved_layer(self, cls, options, text_file, tmp_path, capsys, no_pictures):
        layer = getattr(fastrnn, cls)(ALPHABET, 5, seed=3, **options)
        layer.save(tmp_path / "model.safetensors")
        arguments = ["--model", tmp_path / "model.safetensors", "--text", text_file, "--json", tmp_path / "flow.json"]
        assert run(*arguments, "--out", tmp_path / "flow.png") == 0
        (flow,) = json.loads((tmp_path / "flow.json").read_text()).values()
        assert (flow["cell"], flow["lengths"]) == (cls, [25, 25])
        assert flow["verdict"] in capsys.readouterr().out

    def test_what_fails_leaves_the_figures_there_are(self, tmp_path, no_pictures):
        figures = tmp_path / "flow.json"
        figures.write_text("of before")
        assert run("--text", tmp_path / "none.txt", "--json", figures, "--out", tmp_path / "flow.png") == 2
        assert figures.read_text() == "of before"
        assert list(tmp_path.iterdir()) == [figures]

    def test_picture(self, tmp_path):
        """Of a layer that reads the shipped text, by default its top level."""
        fastrnn.LSTM(62, 5, 2, seed=3).save(tmp_path / "model.safetensors")
        assert run("--model", tmp_path / "model.safetensors", "--out", tmp_path / "flow.png") == 0
        assert is_picture(tmp_path / "flow.png")

    def test_level_and_direction(self, text_file, tmp_path, no_pictures):
        layer = fastrnn.RNN(ALPHABET, 5, 2, bidirectional=True, seed=3)
        layer.save(tmp_path / "model.safetensors")
        got = {}
        for level, direction in ((0, 0), (0, 1), (1, 1), (-1, 1)):
            arguments = ["--level", level, "--direction", direction, "--json", tmp_path / "flow.json"]
            arguments += ["--model", tmp_path / "model.safetensors", "--text", text_file]
            assert run(*arguments, "--out", tmp_path / "flow.svg") == 0
            (flow,) = json.loads((tmp_path / "flow.json").read_text()).values()
            got[level, direction] = flow["gamma_u"]
        suffixes = {(0, 0): "_l0", (0, 1): "_l0_reverse", (1, 1): "_l1_reverse", (-1, 1): "_l1_reverse"}
        for key, suffix in suffixes.items():
            assert got[key] == pytest.approx(np.linalg.norm(layer.params["weight_hh" + suffix].astype(float), 2))

    @pytest.mark.parametrize(
        ("make", "arguments", "message"),
        [
            (None, [], "--model: "),
            (lambda: fastrnn.RNN(7, 5), [], f"expected an input size of {ALPHABET}, .* has 7"),
            (lambda: fastrnn.TDNN(ALPHABET, 5), [], "--model: expected a recurrent one, got TDNN"),
            (
                lambda: fastrnn.RNN(ALPHABET, 5, nonlinearity="identity", init={"identity": 1e9}),
                [],
                "--model: expected states that stay finite, got .* first at step",
            ),
            (lambda: fastrnn.RNN(ALPHABET, 5), ["--level", 1], "--level: expected -1 to 0, got 1"),
            (lambda: fastrnn.RNN(ALPHABET, 5), ["--direction", 1], "--direction: expected 0 to 0, got 1"),
        ],
    )
    def test_unusable_model(self, make, arguments, message, text_file, tmp_path, capsys):
        path = tmp_path / "model.safetensors"
        if make:
            make().save(path)
        assert run("--model", path, "--text", text_file, "--out", tmp_path / "flow.png", *arguments) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "flow.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "900"], "at least 1,801 characters"),
        (["--out", "{folder}"], "--out: cannot write {folder}: Is a directory"),
        (["--out", "{folder}/none/flow.png"], "--out: cannot write {folder}/none/flow.png: No such file or directory"),
        (["--out", "{folder}/flow.xyz"], "--out: expected a file that ends in .png"),
        (["--json", "."], "--json: cannot write .: not a regular file"),
        (["--json", "{folder}/x/../flow.svg"], "--json: expected a file of its own, got that of --out"),
        (["--level", "0"], "expected --model as well"),
        (["--direction", "1"], "expected --model as well"),
    ],
)
def test_errors_of_the_command(arguments, message, text_file, tmp_path, capsys):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert run("--text", text_file, "--out", tmp_path / "flow.svg", *arguments) == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err


def test_values_that_cannot_be_written(text_file, tmp_path, capsys, no_pictures):
    assert run("--text", text_file, "--json", tmp_path / "none" / "flow.json") == 2
    assert "cannot write" in capsys.readouterr().err


def test_missing_matplotlib_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run() == 2
    assert "pip install 'fastrnn[cli]'" in capsys.readouterr().err


def test_texts_are_codes_of_their_characters(text_file):
    text = load_text(text_file, at_least=100)
    codes = np.concatenate([text.training, text.held_out])
    assert "".join(text.alphabet[code] for code in codes) == VERSES
