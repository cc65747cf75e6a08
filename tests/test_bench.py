"""`fastrnn bench`: the other libraries as candidates, the points, and the report."""

import json
import os
import sys
import time

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import bench, main, peers, points, report
from fastrnn.cli.common import CliError

LENGTHS = (2, 5, 1)
SHAPE = points.Shape(5, 3, 4, 6)
POINTS = [
    *(points.Point(cell, SHAPE, "forward") for cell in points.GRID_CELLS),
    *(points.Point(cell, SHAPE, "forward+backward") for cell in ("rnn", "gru")),
    *(points.Point(cell, points.Shape(1, 1, 6, 6), "step") for cell in points.GRID_CELLS),
    *(points.Point("lstm", SHAPE, name, "ragged", lengths=LENGTHS) for name in points.PASSES[:2]),
    *(points.Point("lstm", SHAPE, name, "stack", layers=2, directions=2) for name in points.PASSES[:2]),
]
OTHERS = [name for name in peers.LIBRARIES if name not in peers.OWN]


def skip_unless_installed(library):
    for package in peers.LIBRARIES[library].packages:
        pytest.importorskip(package)


OWN_WAYS = {"fastrnn", "fastrnn frozen", "fastrnn padded"}


class TestPeers:
    @pytest.mark.parametrize("library", OTHERS)
    def test_each_agrees_where_it_takes_part(self, library):
        skip_unless_installed(library)
        for point in POINTS:
            problem = points.Problem(point, "float32", 1)
            names = bench._clocks(problem, ["fastrnn", library]).keys() - OWN_WAYS
            absent = {"onnxruntime": point.backward, "jax": point.lengths is not None}.get(library)
            assert bool(names) == (not absent), point
            assert all(name.split()[0] == library for name in names)
            assert len(names) == 2 or library != "pytorch" or not (point.step or point.lengths)

    def test_ways_are_candidates_of_their_own(self):
        problem = points.Problem(points.Point("gru", SHAPE, "forward", lengths=LENGTHS), "float64", 1)
        assert list(peers.candidates(problem, peers.OWN)) == ["fastrnn", "fastrnn padded", "numpy", "numpy padded"]

    def test_inference_with_frozen_weights_is_one_of_ours(self):
        for pass_name, expected in (("forward", ["fastrnn", "fastrnn frozen", "numpy"]), ("forward+backward", None)):
            problem = points.Problem(points.Point("gru", SHAPE, pass_name), "float64", 1)
            assert list(peers.candidates(problem, peers.OWN)) == (expected or ["fastrnn", "numpy"])

    @pytest.mark.parametrize("wrong", ["y", "dx"])
    def test_disagreement_stops(self, monkeypatch, wrong):
        def off(problem):
            (_, ours), *_ = peers.layer_calls(fastrnn, problem)

            def arrays(result):
                y, dx = ours.arrays(result)
                return (y + 1e-2, dx) if wrong == "y" else (y, dx + 1e-2)

            yield "", peers.Candidate(ours.call, arrays)

        monkeypatch.setitem(peers.LIBRARIES, "other", peers.Library("Other", off, ()))
        problem = points.Problem(points.Point("rnn", SHAPE, "forward+backward"), "float32", 1)
        with pytest.raises(CliError, match=rf"rnn 5x3x4x6, forward\+backward: {wrong} of other differs"):
            bench._clocks(problem, ["fastrnn", "other"])

    def test_cells_of_ours_alone_have_no_peers(self):
        for name in OTHERS:
            skip_unless_installed(name)
            problem = points.Problem(points.Point("lstm-peephole", SHAPE, "forward"), "float32", 1)
            assert not peers.candidates(problem, [name])

    def test_missing_package(self):
        assert peers.Library("", None, ("numpy", "no-such-package")).version() is None
        assert peers.LIBRARIES["numpy"].version() == np.__version__

    def test_command(self, tmp_path, capsys):
        path = tmp_path / "out.json"
        arguments = ["--cell", "rnn,gru", "--shapes", "3x2x4x5", "--threads", "1", "--repeat", "1", "--json", path]
        assert main(["bench", "--peers", *map(str, arguments)]) == 0
        figures = json.loads(path.read_text())
        assert [path] == list(tmp_path.iterdir())
        installed = {name for name in peers.LIBRARIES if peers.LIBRARIES[name].version()}
        assert {name for name, version in figures["libraries"].items() if version} == installed
        assert figures["cells"] == ["rnn", "gru"]
        assert [(r["cell"], r["pass"]) for r in figures["results"]] == [
            (cell, name) for cell in ("rnn", "gru") for name in points.PASSES[:2]
        ]
        forward, both = figures["results"][:2]
        assert forward["seconds"].keys() == installed | {"fastrnn frozen"}
        assert both["seconds"].keys() == installed - {"onnxruntime"}
        assert main(["bench", "--report", str(path), "--output", str(tmp_path / "no" / "where")]) == 2
        assert "--output: cannot write" in capsys.readouterr().err
        assert main(["bench", "--output", str(tmp_path)]) == 2
        assert "--output: expected --report as well" in capsys.readouterr().err
        assert main(["bench", "--report", str(path), "--json", str(path)]) == 2
        assert "--json: measures, and --report does not" in capsys.readouterr().err


class TestPoints:
    def test_grid(self):
        grid = points.points(points.GRID_CELLS, points.GRID_SHAPES)
        assert len(set(grid)) == len(grid) == 3 * 2 * 18

    def test_special_points(self):
        special = list(points.special_points(["lstm", "cec"]))
        assert {point.cell for point in special} == {"lstm"}
        assert {point.variant for point in special} == {"", "sentences", "denormals", "2 layers, 2 directions"}
        assert sum(point.step for point in special) == len(points.STEP_SIZES)

    def test_lengths_of_sentences(self):
        lengths = points.sentence_lengths(3)
        assert lengths == (10, 17, 12)  # "In the beginning God created the heaven and the earth."

    def test_ragged_and_back(self):
        problem = points.Problem(points.Point("rnn", SHAPE, "forward", lengths=LENGTHS), "float32", 1)
        ragged = problem.ragged(problem.x)
        assert ragged.shape == (sum(LENGTHS), SHAPE.inputs)
        np.testing.assert_array_equal(ragged[LENGTHS[0] : sum(LENGTHS[:2])], problem.x[:, 1])
        np.testing.assert_array_equal(problem.padded(ragged), problem.x)

    def test_denormals(self):
        problem = points.Problem(points.Point("gru", SHAPE, "forward", scale=points.DENORMAL), "float32", 1)
        assert 0 < np.abs(problem.dy).max() < np.finfo(np.float32).tiny
        assert not problem.params["bias_hh_l0"].any()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be bound to processors here")
class TestWorker:
    def test_has_as_many_processors_as_threads(self):
        before = os.sched_getaffinity(0)
        with bench.worker(1) as process:
            assert os.sched_getaffinity(0) == before
            assert len(process.submit(os.sched_getaffinity, 0).result()) == 1

    def test_its_death_is_an_error(self):
        with bench.worker(1) as process, pytest.raises(CliError, match="died in _exit"):
            bench.call(process, os._exit, 1)


class TestClock:
    def test_few_samples_of_a_slow_call(self):
        clock = bench.Clock(lambda: None, 1)
        assert clock.samples(9) == 9
        clock._seconds, clock._calls = 0.11, 1
        assert clock.samples(9) == 5
        clock._seconds = 10
        assert clock.samples(9) == bench.FEWEST_SAMPLES
        assert clock.samples(2) == 2

    def test_a_sample_is_the_middle_of_a_run(self):
        times = []
        clock = bench.Clock(lambda: times.append(time.perf_counter()), 1)
        times.clear()
        clock.sample()
        warm = times[: -clock._calls]
        assert len(warm) >= bench.WARM_CALLS
        assert times[-clock._calls] - warm[0] >= bench.WARM_SECONDS

    def test_the_processors_are_awake_before_a_long_call(self, monkeypatch):
        calls = []
        clock = bench.Clock(lambda: calls.append("call"), 2)
        clock._seconds, clock._calls = 1, 1
        monkeypatch.setattr(bench.roofline, "fma_peak", lambda **how: calls.append(how))
        calls.clear()
        clock.sample()
        assert calls == [{"threads": 2, "seconds": bench.WARM_SECONDS}, "call"]


def result(cell="rnn", shape=(100, 32, 128, 128), name="forward", ours=2e-3, fraction=0.8, variant="", **ratios):
    return {
        "cell": cell,
        **dict(zip(points.Shape._fields, shape, strict=True)),
        "variant": variant,
        "threads": 1,
        "pass": name,
        "flops": 2e8,
        "peak": {"median": 9e10},
        "seconds": {"fastrnn": {"median": ours}},
        "ratio": {key.replace("_", " "): {"median": value} for key, value in ratios.items()},
        "fraction_of_limit": {"median": fraction},
    }


FIGURES = {
    "format": report.FORMAT,
    "machine": {"processor": "Abacus", "isa": "beads"},
    "libraries": {"fastrnn": "1", "numpy": "2", "jax": None},
    "dtype": "float32",
    "repeat": 3,
    "roofline": [{"threads": 1, "peak": 1e11, "bandwidth": {"L1": 2e11}}],
    "results": [
        result(numpy=4.0, pytorch=2.0),
        result("gru", name="forward+backward", numpy=9.0, pytorch=3.0),
        result("gru", (1, 1, 64, 64), "step", fraction=0.1, numpy=9.0, pytorch=3.0, pytorch_cell=0.75),
        result(variant="denormals", ours=3e-3, numpy=8.0, pytorch=20.0),
    ],
}


class TestReport:
    def run(self, tmp_path, content):
        path = tmp_path / "out.json"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return main(["bench", "--report", str(path)])

    def test_table_and_plot(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        assert self.run(tmp_path, FIGURES) == 0
        out = capsys.readouterr().out
        assert (tmp_path / "out.md").read_text() == out
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

    def test_output_may_be_a_folder(self, tmp_path):
        pytest.importorskip("matplotlib")
        folder, path = tmp_path / "folder", tmp_path / "out.json"
        folder.mkdir()
        path.write_text(json.dumps(FIGURES))
        assert main(["bench", "--report", str(path), "--output", str(folder)]) == 0
        assert sorted(file.name for file in folder.iterdir()) == ["out.md", "out.png"]

    def test_what_the_table_says(self):
        text = report.markdown(FIGURES, report._rows("", FIGURES))
        assert "Abacus, beads, float32; fastrnn 1, NumPy 2." in text
        assert "- 1 thread: peak 100 GFLOP/s before the points, 90 beside them; reads, GB/s: L1 200\n" in text
        assert (
            "## Behind the best peer: 1 of 4 points\n\n- gru 1x1x64x64, step, 1 thread: PyTorch cell takes 0.75" in text
        )
        assert f"| ratio to the best peer, all points | 4 | {(2 * 3 * 0.75 * 8) ** 0.25:.2f} |" in text
        assert f"| ratio to the best peer, without variants | 3 | {(2 * 3 * 0.75) ** (1 / 3):.2f} |" in text
        assert "| ratio to PyTorch, GRU training | 1 | 3.00 |" in text
        assert "RNN training" not in text
        assert "| fraction of the limit, B >= 16 and H >= 128 | 3 | 80% |" in text
        assert (
            "| rnn | forward | 1 | 100x32x128x128 | 2.000 ms | 100.0 | 80% | 4.00 | 2.00 | PyTorch | 2.00 |\n" in text
        )
        assert "| rnn | forward | 1 | 100x32x128x128 | 1.50 | 3.00 | 15.00 |" in text  # of the times without denormals

    def test_stopped_before_the_points_of_a_thread_count(self):
        figures = FIGURES | {"roofline": [*FIGURES["roofline"], {"threads": 2, "peak": 2e11, "bandwidth": {}}]}
        text = report.markdown(figures, report._rows("", figures))
        assert "- 2 threads: peak 200 GFLOP/s before the points; reads" in text

    def test_frozen_weights_are_compared_beside(self):
        figures = FIGURES | {"results": [result(fastrnn_frozen=0.8, pytorch=0.9), result(numpy=1.5)]}
        text = report.markdown(figures, report._rows("", figures))
        assert "1 thread: PyTorch takes 0.90 of our time, 1.12 of that with frozen weights\n" in text
        assert "| ratio to the best peer, forward with frozen weights | 1 | 1.12 |" in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read"),
            (b"", "expected JSON"),
            (b"\xff\xfe", "expected JSON"),
            ([1], "expected a file of fastrnn bench --json"),
            ({"benchmarks": []}, "expected a file of fastrnn bench --json"),
            ({"machine": {}, "cell": "rnn", "roofline": [], "results": []}, "an older one"),
            (FIGURES | {"format": "fastrnn bench 3"}, "fastrnn bench 3"),
            (FIGURES | {"results": []}, "no results yet"),
            (FIGURES | {"results": [{"cell": "rnn"}]}, "damaged"),
            (FIGURES | {"results": [result()]}, "damaged"),
        ],
    )
    def test_bad_file(self, tmp_path, capsys, content, message):
        assert self.run(tmp_path, content) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(tmp_path) in error
        assert error.count("\n") == 1

    def test_missing_matplotlib_names_the_extra(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert self.run(tmp_path, FIGURES) == 2
        assert "pip install 'fastrnn[cli]'" in capsys.readouterr().err
