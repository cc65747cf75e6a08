"""The `fastrnn` command, run in this process on small sizes."""

import importlib.resources
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import roofline
from fastrnn.cli import common, demo, language, main
from fastrnn.cli.text import load_text

VERSES = "In the beginning God created the heaven and the earth.\nAnd God said, Let there be light.\n" * 40


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(VERSES, encoding="utf-8")
    return path


def run_demo(*arguments):
    return main(["demo", "--quick", "--seconds", "0.2", "--threads", "1", *map(str, arguments)])


class TestDemo:
    def test_trains_compares_and_writes(self, text_file, capsys):
        assert run_demo("--text", text_file) == 0
        out = capsys.readouterr().out
        assert "largest difference of the two loss curves" in out
        assert "characters per second" in out
        written = out.partition("It writes")[2].partition("\n\n")[2]
        assert len(written) == demo.QUICK.sample + 1
        assert set(written) <= set(VERSES)

    def test_trains_on_the_shipped_text(self, capsys):
        assert main(["demo", "--quick", "--seconds", "0"]) == 0
        assert "King James" in capsys.readouterr().out

    def test_same_seed_same_losses(self, text_file, capsys):
        def losses(seed):
            run_demo("--text", text_file, "--seed", seed)
            return [line for line in capsys.readouterr().out.splitlines() if "loss  " in line]

        first = losses(7)
        assert len(first) == 2
        assert first == losses(7) != losses(8)

    def test_training_lowers_the_loss(self):
        sizes = demo.QUICK
        text = load_text(None, at_least=0)
        layer = fastrnn.RNN(len(text.alphabet), sizes.hidden, seed=0)
        trainer = language.Trainer(layer, text, sizes.batch, sizes.steps, seed=0)
        untrained = trainer.evaluate(text.held_out)
        assert untrained == pytest.approx(np.log(len(text.alphabet)), rel=0.05)
        for _ in range(300):
            trainer.step()
        assert trainer.evaluate(text.held_out) < 0.7 * untrained

    def test_ctrl_c_goes_on_to_the_sample(self, text_file, capsys, monkeypatch):
        step, calls = demo.Trainer.step, []

        def interrupted_step(trainer):
            calls.append(trainer)
            if len(calls) > 2 * demo.QUICK.compared_steps + 3:
                raise KeyboardInterrupt
            return step(trainer)

        monkeypatch.setattr(demo.Trainer, "step", interrupted_step)
        assert run_demo("--text", text_file, "--seconds", "600") == 0
        assert "It writes" in capsys.readouterr().out

    def test_ctrl_c_before_ends_the_command(self, text_file, capsys, monkeypatch):
        monkeypatch.setattr(demo.Trainer, "step", interrupt)
        assert run_demo("--text", text_file) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_disagreement_is_reported(self, text_file, capsys, monkeypatch):
        monkeypatch.setattr(demo, "SAME_LOSS", -1.0)
        assert run_demo("--text", text_file) == 1
        assert "disagree" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read"),
            (b"In the beginning", "at least 256 characters"),
            (b"", "at least 256 characters"),
            (b"\x89PNG\r\n\x1a\n" * 100, "expected UTF-8 text"),
            (b"abc\0" * 1000, "NUL"),
            ("".join(map(chr, range(0x4E00, 0x5E00))).encode(), "different characters"),
        ],
    )
    def test_unusable_text(self, content, message, tmp_path, capsys):
        path = tmp_path / "text"
        if content is not None:
            path.write_bytes(content)
        assert run_demo("--text", path) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(path) in error

    def test_a_directory_is_no_text(self, tmp_path, capsys):
        assert run_demo("--text", tmp_path) == 2
        assert "cannot read" in capsys.readouterr().err

    @pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "a minute"])
    def test_a_time_that_is_none(self, seconds, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["demo", "--seconds", seconds])
        assert f"--seconds: expected a time >= 0, got '{seconds}'" in capsys.readouterr().err

    def test_missing_tqdm_names_the_extra(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert run_demo() == 2
        assert "pip install 'fastrnn[cli]'" in capsys.readouterr().err

    def test_shipped_text(self):
        text = (importlib.resources.files("fastrnn") / "data" / "kjv.txt").read_bytes()
        assert text.startswith(b"In the beginning God created the heaven and the earth.\n")
        assert 200_000 < len(text) < 600_000
        assert text.isascii()
        assert b"\r" not in text


class TestInfo:
    def test_prints_version_isa_and_threads(self, capsys):
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert fastrnn.__version__ in out
        assert fastrnn._core.get_isa() in out
        assert "threads" in out

    def test_runs_as_a_module(self):
        result = subprocess.run([sys.executable, "-m", "fastrnn", "info"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert fastrnn.__version__ in result.stdout


class TestBench:
    def test_table_and_json(self, tmp_path, capsys):
        path, threads = tmp_path / "out.json", fastrnn.get_num_threads()
        arguments = ["--shapes", "3x2x4x5,2x1x8x8", "--threads", "1,2", "--repeat", "2", "--json", str(path)]
        assert main(["bench", *arguments]) == 0
        assert fastrnn.get_num_threads() == threads
        out = capsys.readouterr().out
        report = json.loads(path.read_text())

        assert report["machine"]["isa"] == fastrnn._core.get_isa()
        assert 0 < report["call_overhead_seconds"] < 1
        assert [rates["threads"] for rates in report["roofline"]] == [1, 2]
        for rates in report["roofline"]:
            assert rates["peak"] > 0
            assert all(bandwidth > 0 for bandwidth in rates["bandwidth"].values())
        assert len(report["results"]) == 8  # threads x shapes x passes
        for result in report["results"]:
            shape = "x".join(str(result[name]) for name in ("steps", "batch", "inputs", "hidden"))
            assert out.count(shape) == 4
            frozen = {"fastrnn frozen"} if result["pass"] == "forward" else set()
            assert result["seconds"].keys() == {"fastrnn", "numpy"} | frozen
            for figures in (
                *result["seconds"].values(),
                result["ratio"]["numpy"],
                result["fraction_of_limit"],
            ):
                assert 0 < figures["low"] <= figures["median"] <= figures["high"]
        forward, both = report["results"][:2]
        assert (forward["pass"], both["pass"]) == ("forward", "forward+backward")
        assert forward["flops"] == 2 * 3 * 2 * 5 * (4 + 5)
        assert both["flops"] == 3 * forward["flops"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--shapes", "1x2x3"],
            ["--shapes", "1x2x3x0"],
            ["--shapes", "axbxcxd"],
            ["--threads", "0"],
            ["--threads", "one"],
            ["--threads", "1,257"],
            ["--shapes", "99999999999999999999x1x1x1"],
            ["--cell", "perceptron"],
            ["--cell", "rnn,"],
            ["--dtype", "int8"],
            ["--repeat", "-1"],
        ],
    )
    def test_bad_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["bench", *arguments])
        assert arguments[0] in capsys.readouterr().err

    def test_too_large_a_shape(self, capsys):
        assert main(["bench", "--shapes", "1x1x1x99999999"]) == 2
        assert "fastrnn bench: error: not enough memory" in capsys.readouterr().err

    def test_unwritable_json_is_found_before_measuring(self, tmp_path, capsys):
        assert main(["bench", "--json", str(tmp_path / "missing" / "out.json")]) == 2
        assert "--json: cannot write" in capsys.readouterr().err


class TestMain:
    @pytest.mark.parametrize("name", ["FASTRNN_NUM_THREADS", "FASTRNN_ISA"])
    def test_a_bad_environment(self, name):
        env = os.environ | {name: "many"}
        run = subprocess.run([sys.executable, "-m", "fastrnn", "info"], env=env, capture_output=True, text=True)
        assert run.returncode == 2
        assert run.stderr.startswith(f"fastrnn info: error: {name}: expected")
        assert run.stderr.count("\n") == 1

    def test_a_reader_that_has_gone(self):
        read, write = os.pipe()
        os.close(read)
        run = subprocess.run([sys.executable, "-m", "fastrnn", "info"], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (run.returncode, run.stderr) == (141, "")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
    @pytest.mark.parametrize("arguments", [["info"], ["demo", "--quick", "--seconds", "0"]], ids=lambda a: a[0])
    def test_output_that_cannot_be_written(self, arguments):
        command = [sys.executable, "-m", "fastrnn", *arguments]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
        assert run.returncode == 2
        assert run.stderr.splitlines()[-1].startswith(f"fastrnn {arguments[0]}: error: No space")
        assert "Traceback" not in run.stderr

    def test_what_was_written_before_an_error(self, monkeypatch, capsys):
        def fail(args):
            print("figures")
            raise OSError("libother.so: cannot open shared object file")

        monkeypatch.setattr("fastrnn.cli.info.run", fail)
        assert main(["info"]) == 2
        out, err = capsys.readouterr()
        assert out == "figures\n"
        assert err == "fastrnn info: error: libother.so: cannot open shared object file\n"

    def test_no_output(self):
        """Closed before the start, as by >&-."""
        script = "import sys; sys.stdout = None; from fastrnn.cli import main; sys.exit(main(['info']))"
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

    def test_no_command(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main([])
        assert "COMMAND" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["demo", "--help"],
            ["info", "--help"],
            ["bench", "--help"],
            ["task", "--help"],
            ["task", "sum", "--help"],
        ],
    )
    def test_help(self, arguments, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "usage: fastrnn" in capsys.readouterr().out

    def test_version(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out.split() == ["fastrnn", fastrnn.__version__]

    def test_every_cell_has_its_layer(self):
        for cell in common.CELLS.values():
            assert hasattr(fastrnn, cell.layer)
            assert hasattr(fastrnn.reference, cell.layer)


class TestRoofline:
    @pytest.fixture
    def sysfs(self, tmp_path, monkeypatch):
        """Eight CPUs with an L1 and an L2 each, and an L3 for every four."""
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        for index, (level, kind, size, cpus) in enumerate(
            [("1", "Data", "48K", "0"), ("1", "Instruction", "32K", "0"), ("2", "Unified", "2048K", "0"),
             ("3", "Unified", "32M", "0-2,4")]
        ):  # fmt: skip
            folder = tmp_path / f"index{index}"
            folder.mkdir()
            for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", cpus)):
                (folder / name).write_text(value + "\n")
        return tmp_path

    def test_levels_from_sysfs(self, sysfs):
        *caches, memory = roofline.levels(sysfs)
        assert [(cache.name, cache.size, cache.instances) for cache in caches] == [
            ("L1", 48 << 10, 8),
            ("L2", 2 << 20, 8),
            ("L3", 32 << 20, 2),
        ]
        assert memory.name == "memory"
        assert [caches[2].capacity(threads) for threads in (1, 2, 8)] == [32 << 20, 32 << 20, 8 << 20]

    @pytest.mark.parametrize("threads", [0, -1])
    def test_no_threads(self, threads):
        for measure in (roofline.fma_peak, lambda **options: roofline.read_bandwidth(roofline.levels()[0], **options)):
            with pytest.raises(ValueError, match=f"^threads: expected at least 1, got {threads}"):
                measure(threads=threads)

    def test_levels_without_sysfs(self, tmp_path):
        assert [level.name for level in roofline.levels(tmp_path / "none")] == ["L1", "L2", "L3", "memory"]

    def test_work_of_a_layer(self):
        forward = roofline.Work.layer(10, 2, 3, 5, gates=4, dtype=np.float64)
        assert forward.flops == 2 * 10 * 2 * 4 * 5 * (3 + 5)
        assert forward.resident_bytes == 4 * 5 * 5 * 8
        assert forward.bytes_read == (10 * 5 + 3) * 4 * 5 * 8
        both = roofline.Work.layer(10, 2, 3, 5, gates=4, dtype=np.float64, backward=True)
        assert (both.flops, both.bytes_read) == (3 * forward.flops, 2 * forward.bytes_read)

    def test_work_of_a_stack(self):
        one, two = (roofline.Work.layer(10, 2, inputs, 5, gates=4, backward=True) for inputs in (3, 10))
        stack = roofline.Work.layer(10, 2, 3, 5, gates=4, backward=True, layers=2, directions=2)
        assert stack.flops == 2 * (one.flops + two.flops)
        assert stack.bytes_read == 2 * (one.bytes_read + two.bytes_read)
        assert stack.resident_bytes == one.resident_bytes

    def test_work_of_sequences_of_different_lengths(self):
        padded, ragged = (roofline.Work.layer(10, 2, 3, 5, gates=1, rows=rows) for rows in (None, 13))
        assert ragged.flops == padded.flops * 13 / 20
        assert ragged.bytes_read == padded.bytes_read

    def test_work_of_one_step_keeps_all_weights(self):
        step = roofline.Work.layer(1, 1, 3, 5, gates=3)
        assert step.resident_bytes == step.bytes_read == 3 * 5 * (3 + 5) * 4

    def test_limit_is_the_slower_of_compute_and_memory(self):
        work = roofline.Work(flops=100, bytes_read=10, resident_bytes=1)
        assert roofline.limit_seconds(work, peak=10, bandwidth=10) == 10
        assert roofline.limit_seconds(work, peak=100, bandwidth=1) == 10
        rates = roofline.Roofline("float32", 1, peak=100, bandwidth={"L1": 1})
        assert rates.limit_seconds(work) == 10

    def test_share_of_one_core_decides_the_level(self):
        levels = {level.name: level for level in roofline.levels()}
        fits = roofline.Work(1, 1, levels["L1"].size)
        too_large = roofline.Work(1, 1, levels["L1"].size + 1)
        assert fits.level(1).name == "L1"
        assert too_large.level(1).name == "L2"


def interrupt(*_):
    raise KeyboardInterrupt
