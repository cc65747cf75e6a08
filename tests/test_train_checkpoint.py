"""Checkpoints: a run that goes on has the same bits; one that differs is refused, and nothing is changed."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from files import parts_of, written
from helpers import as_tuple, assert_same_bits, map_state

import fastrnn
from fastrnn.train import (
    SGD,
    Adam,
    AdamW,
    CosineDecay,
    Linear,
    load_checkpoint,
    save_checkpoint,
    softmax_cross_entropy,
)

safetensors_numpy = pytest.importorskip("safetensors.numpy")

CODES = 7
TEXT = np.random.default_rng(0).integers(0, CODES, 4000)
ONE_HOT = np.eye(CODES, dtype=np.float32)


class Run:
    """A character model with dropout that reads random places of a text, its state carried from step to step."""

    def __init__(self, backend=fastrnn, optimizer="adamw", seed=0, cell="LSTM", hidden_size=6, **options):
        options = {"num_layers": 2, "dropout": 0.3} | options
        layer = getattr(backend, cell)(CODES, hidden_size, seed=seed, **options)
        head = Linear(hidden_size, CODES, dtype=layer.dtype, seed=seed)
        self.models = {"layer": layer, "head": head}
        params = {f"{name}.{key}": p for name, model in self.models.items() for key, p in model.params.items()}
        self.optimizer = {
            "adamw": lambda: AdamW(params, CosineDecay(0.01, steps=50, warmup=5)),
            "adam": lambda: Adam(params, 0.01),
            "sgd": lambda: SGD(params, 0.1, momentum=0.9, nesterov=True),
        }[optimizer]()
        self.rng = np.random.default_rng(seed)
        self.step, self.state = 0, None

    def train(self, steps):
        losses = []
        for _ in range(steps):
            places = self.rng.integers(0, TEXT.size - 9, 3) + np.arange(9)[:, None]
            grads = {}
            layer, head = self.models.values()

            def loss(y, t0, head=head, targets=TEXT[places + 1], grads=grads):
                logits, tape = head.forward(y)
                losses, dlogits = softmax_cross_entropy(logits, targets[t0 : t0 + len(y)])
                head_grads = head.backward(tape, dlogits)
                for key, gradient in head_grads.params.items():
                    grads[f"head.{key}"] = grads.get(f"head.{key}", 0) + gradient
                return losses, head_grads.x

            result = fastrnn.bptt(layer, ONE_HOT[TEXT[places]], loss, state=self.state, chunk=4)
            grads |= {f"layer.{key}": gradient for key, gradient in result.grads.params.items()}
            self.optimizer.step(grads)
            self.state = result.state
            self.step += 1
            losses.append(result.loss)
        return losses

    def save(self, path):
        arrays = {str(i): s for i, s in enumerate(as_tuple(self.state))}
        save_checkpoint(
            path, self.models, self.optimizer, step=self.step, generators={"places": self.rng}, arrays=arrays
        )

    def load(self, path):
        checkpoint = load_checkpoint(path, self.models, self.optimizer, generators={"places": self.rng})
        self.step = checkpoint.step
        parts = tuple(checkpoint.arrays.values())
        self.state = parts if len(parts) > 1 else parts[0] if parts else None
        return self

    def everything(self):
        """All that a step depends on, as arrays by name."""
        moments = self.optimizer.state_dict()["moments"]
        generators = (self.rng, self.models["layer"]._dropout_rng)
        return (
            {name: p.copy() for name, p in self.optimizer.params.items()}
            | {f"{moment} {name}": a for moment, arrays in moments.items() for name, a in arrays.items()}
            | {
                f"generator {i}": np.frombuffer(repr(g.bit_generator.state).encode(), "u1")
                for i, g in enumerate(generators)
            }
            | {"steps": np.array([self.step, self.optimizer.steps])}
            | {f"state {i}": s for i, s in enumerate(as_tuple(map_state(np.copy, self.state)))}
        )


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_run_goes_on_with_the_same_bits(backend, optimizer, cell, path):
    whole = Run(backend, optimizer, cell=cell)
    losses = whole.train(9)
    first = Run(backend, optimizer, cell=cell)
    assert first.train(5) == losses[:5]
    first.save(path)
    saved = first.everything()
    second = Run(backend, optimizer, seed=1, cell=cell).load(path)
    assert_same_bits(second.everything(), saved)
    assert second.train(4) == losses[5:]
    assert_same_bits(second.everything(), whole.everything())


def test_kernels_and_reference_take_each_others(path):
    first = Run(fastrnn.reference)
    first.train(2)
    first.save(path)
    assert_same_bits(Run(fastrnn, seed=1).load(path).everything(), first.everything())


def test_the_path_alone(path):
    run = Run()
    run.train(2)
    run.save(path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 2
    for name, model in run.models.items():
        assert_same_bits({key: checkpoint.models[name][key] for key in model.params}, dict(model.params))
    assert_same_bits(checkpoint.arrays, {"0": run.state[0], "1": run.state[1]})


def test_models_alone_leave_everything_else(path):
    run, other = Run(), Run(seed=1)
    run.train(2)
    run.save(path)
    load_checkpoint(path, other.models)
    assert other.optimizer.steps == 0
    assert other.rng.bit_generator.state == np.random.default_rng(1).bit_generator.state
    assert_same_bits(dict(other.models["layer"].params), dict(run.models["layer"].params))


@dataclass(frozen=True)
class Halved:
    """A schedule of a user's own."""

    lr: float
    every: int

    def __call__(self, step):
        return self.lr / 2 ** (step // self.every)


def test_a_schedule_with_numbers_of_numpy(path):
    save_checkpoint(path, {}, SGD({}, Halved(np.float32(0.5), np.int64(3))))
    load_checkpoint(path, {}, SGD({}, Halved(0.5, 3)))
    with pytest.raises(ValueError, match=r"expected lr .*'every': 3.* as was saved, got .*'every': 4"):
        load_checkpoint(path, {}, SGD({}, Halved(0.5, 4)))


def test_parameters_without_a_name(path):
    with pytest.raises(TypeError, match=r"^optimizer: expected parameters named by strings, got 0"):
        save_checkpoint(path, {}, SGD({0: np.ones(2)}, 1))


def test_the_least_checkpoint(path):
    save_checkpoint(path, {})
    assert load_checkpoint(path, {}, generators={}) == (0, {}, {})
    save_checkpoint(path, {}, Adam({}))
    load_checkpoint(path, {}, Adam({}))


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_bit_generator(bits, path):
    rng = np.random.Generator(bits(5))
    rng.random(3, np.float32)  # leaves half of a draw behind
    save_checkpoint(path, {}, generators={"a": rng})
    other = np.random.Generator(bits(6))
    load_checkpoint(path, generators={"a": other})
    for one in (rng, other):
        assert one.random(2, np.float32).dtype == np.float32
    np.testing.assert_array_equal(rng.random(50, np.float32), other.random(50, np.float32))
    np.testing.assert_array_equal(rng.standard_normal(50), other.standard_normal(50))


def test_arrays_of_every_kind_and_names_with_slashes_in_parameters(path):
    arrays = {"i": np.arange(3), "b": np.array([True]), "e": np.zeros((0, 2), np.float32), "f": np.array(0.5)}
    layer = fastrnn.TDNN(2, 3, context=(-1, 0), seed=0)
    optimizer = SGD({"layer/a": layer.params["weight_l0"]}, 0.1)
    optimizer.step({"layer/a": np.ones((3, 2, 2))})
    save_checkpoint(path, {"tdnn": layer}, optimizer, arrays=arrays)
    other = SGD({"layer/a": np.zeros((3, 2, 2), np.float32)}, 0.1)
    assert_same_bits(
        dict(sorted(load_checkpoint(path, {"tdnn": layer}, other).arrays.items())), dict(sorted(arrays.items()))
    )
    assert (other.state_dict()["moments"]["velocity"]["layer/a"] == 1).all()


# ---- What differs. ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 5}, "models['layer']: expected hidden_size 6 as in"),
        ({"cell": "GRU"}, "models['layer']: expected class LSTM as in"),
        ({"num_layers": 3}, "models['layer']: expected num_layers 2 as in"),
        ({"dropout": 0.0}, "models['layer']: expected dropout 0.3 as in"),
        ({"bias": False}, "models['layer']: expected bias its default as in"),
        ({"dtype": "float64"}, "models['layer']: expected dtype its default as in"),
        ({"optimizer": "adam"}, "expected class AdamW as was saved, got Adam"),
        ({"optimizer": "sgd"}, "expected class AdamW as was saved, got SGD"),
    ],
    ids=str,
)
def test_a_run_with_other_options(options, message, path):
    run = Run()
    run.train(1)
    run.save(path)
    other = Run(**options, seed=1)
    before = other.everything()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        other.load(path)
    assert str(path) in str(caught.value)
    assert_same_bits(other.everything(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.models.pop("head"), r"^models: expected \['head', 'layer'\] as in .*, got \['layer'\]"),
        (lambda run: run.models.update(head=Linear(6, 8)), r"^models\['head'\]: expected output_size 7 .*, got 8"),
        (lambda run: run.models.update(head=Run().models["layer"]), r"^models\['head'\]: expected class Linear"),
        (
            lambda run: setattr(run, "rng", np.random.Generator(np.random.MT19937(0))),
            r"^generators\['places'\]: expected a bit generator PCG64 as in .*, got MT19937",
        ),
        (
            lambda run: setattr(run.optimizer, "lr", CosineDecay(0.01, steps=60, warmup=5)),
            "expected lr .*'steps': 50.* as was saved, got .*'steps': 60",
        ),
        (lambda run: setattr(run.optimizer, "weight_decay", 0.5), "expected settings .*0.01.* as was saved, got .*0.5"),
    ],
)
def test_what_else_differs(change, message, path):
    run, other = Run(), Run(seed=1)
    run.save(path)
    change(other)
    before = other.everything()
    with pytest.raises(ValueError, match=message):
        other.load(path)
    assert_same_bits(other.everything(), before)


def test_no_optimizer_or_other_generators_in_the_file(path):
    run = Run()
    save_checkpoint(path, run.models)
    with pytest.raises(ValueError, match=r"^optimizer: expected None, for .* holds none, got AdamW"):
        load_checkpoint(path, run.models, run.optimizer)
    with pytest.raises(ValueError, match=r"^generators: expected \[\] as in .*, got \['places'\]"):
        load_checkpoint(path, generators={"places": run.rng})


# ---- Bad arguments and bad files. ----


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([Linear(2, 3)],), {}, TypeError, "models: expected a mapping of names to layers, got list"),
        (({},), {"generators": [3]}, TypeError, "generators: expected a mapping of names to generators, got list"),
        (({},), {"arrays": np.zeros(3)}, TypeError, "arrays: expected a mapping of names to arrays, got ndarray"),
        (({"a": 3},), {}, TypeError, r"models\['a'\]: expected a layer or a Linear, got int"),
        (({"a/b": Linear(2, 3)},), {}, ValueError, "models: expected names without a slash, got 'a/b'"),
        (({}, 3), {}, TypeError, "optimizer: expected SGD, Adam or AdamW, got int"),
        (({},), {"generators": {"a": 3}}, TypeError, r"generators\['a'\]: expected a numpy.random.Generator, got int"),
        (({},), {"step": -1}, ValueError, "step: expected at least 0, got -1"),
        (({},), {"step": 1.5}, TypeError, "step: expected an integer, got 1.5"),
        (({},), {"arrays": {"a": 1j}}, TypeError, r"arrays\['a'\]: expected an array of real numbers"),
        (({},), {"arrays": {"a": np.longdouble(1)}}, TypeError, r"arrays\['a'\]: expected an array of real numbers"),
        (({},), {"arrays": {"a/b": 1}}, ValueError, "arrays: expected names without a slash, got 'a/b'"),
    ],
)
def test_bad_arguments(arguments, options, error, message, path):
    with pytest.raises(error, match=f"^{message}"):
        save_checkpoint(path, *arguments, **options)
    assert not path.exists()
    if options.keys() <= {"generators"}:
        save_checkpoint(path, {})
        with pytest.raises(error, match=f"^{message}"):
            load_checkpoint(path, *arguments, **options)


def test_models_have_to_be_given(path):
    with pytest.raises(TypeError, match=r"^models: expected a mapping of names to layers, got NoneType"):
        save_checkpoint(path, None)


def test_a_layers_file_is_no_checkpoint_and_a_checkpoint_no_layer(path):
    layer = fastrnn.RNN(2, 3)
    layer.save(path)
    with pytest.raises(ValueError, match="expected a checkpoint that fastrnn saved: its metadata have no 'models'"):
        load_checkpoint(path)
    save_checkpoint(path, {"layer": layer})
    with pytest.raises(ValueError, match="expected a layer that fastrnn saved: its metadata have no 'class'"):
        fastrnn.RNN.load(path)


def rewritten(path, change):
    """The checkpoint with other metadata or tensors."""
    about = json.loads(parts_of(path)[0]["__metadata__"]["fastrnn"])
    tensors = safetensors_numpy.load_file(path)
    change(about, tensors)
    safetensors_numpy.save_file(tensors, path, {"fastrnn": json.dumps(about)})


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.update(models=3),
        lambda about, tensors: about["models"].update(layer=3),
        lambda about, tensors: about["models"]["layer"].pop("options"),
        lambda about, tensors: about["models"]["layer"].update(options=[1]),
        lambda about, tensors: about["models"]["layer"]["options"].update(dtype="float16"),
        lambda about, tensors: about["models"]["layer"]["options"].update(dtype=["float32"]),
        lambda about, tensors: about["models"]["layer"].update(generator=3),
        lambda about, tensors: about["models"]["layer"].update(generator=None),
        lambda about, tensors: about["models"]["layer"]["generator"]["state"].update(state=-1),
        lambda about, tensors: about["models"]["layer"]["generator"].update(state=[]),
        lambda about, tensors: about["models"]["head"].update(generator={}),
        lambda about, tensors: about.update(optimizer=3),
        lambda about, tensors: about["optimizer"].pop("lr"),
        lambda about, tensors: about["optimizer"].update(steps="many"),
        lambda about, tensors: about.update(step=-1),
        lambda about, tensors: about.update(step=None),
        lambda about, tensors: about.update(generators=[]),
        lambda about, tensors: about["generators"].update(places=3),
        lambda about, tensors: about["generators"].update(places={}),
        lambda about, tensors: about["generators"]["places"]["state"].update(inc="x"),
        lambda about, tensors: about.update(version=2),
        lambda about, tensors: about.clear(),
        lambda about, tensors: tensors.pop("models/head/bias"),
        lambda about, tensors: tensors.update({"models/head/bias": np.zeros(3)}),
        lambda about, tensors: tensors.update({"models/body/bias": np.zeros(3)}),
        lambda about, tensors: tensors.update({"models/head": np.zeros(3)}),
        lambda about, tensors: tensors.pop("optimizer/mean/head.bias"),
        lambda about, tensors: tensors.update({"optimizer/mean": np.zeros(3)}),
        lambda about, tensors: tensors.update({"arrays": np.zeros(3)}),
        lambda about, tensors: tensors.update({"other/a": np.zeros(3)}),
    ],
)
def test_damaged_metadata(change, path):
    run = Run()
    run.train(1)
    run.save(path)
    rewritten(path, change)
    other = Run(seed=1)
    before = other.everything()
    with pytest.raises(ValueError, match=re.escape(str(path))):
        other.load(path)
    assert_same_bits(other.everything(), before)


BYTES = {"BOOL": 1, "F8_E4M3": 1, "I8": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


@pytest.mark.parametrize(
    ("name", "expected", "dtypes"),
    [
        ("models/layer/weight_ih_l0", "F32", ("BF16", "F16", "F8_E4M3", "F64", "I32", "I64", "BOOL")),
        ("models/head/weight", "F32", ("BF16", "F64")),
        ("optimizer/mean/head.weight", "F16 or F32 or F64", ("BF16", "I32", "BOOL")),
        ("arrays/0", "F16 or F32 or F64 or BOOL or I8", ("BF16", "F8_E4M3")),
    ],
)
@pytest.mark.parametrize("with_objects", [False, True])
def test_dtypes_that_do_not_belong(name, expected, dtypes, with_objects, path):
    run = Run()
    run.train(1)
    run.save(path)
    header, data = parts_of(path)
    start, end = header[name]["data_offsets"]
    before = run.everything()
    for dtype in dtypes:
        tensor = {"dtype": dtype, "shape": [(end - start) // BYTES[dtype]], "data_offsets": [start, end]}
        written(path, header | {name: tensor}, data)
        message = f"{re.escape(str(path))}.* {name}: expected dtype {expected}.*, got {dtype}$"
        with pytest.raises(ValueError, match=message):
            run.load(path) if with_objects else load_checkpoint(path)
    assert_same_bits(run.everything(), before)


def test_arrays_of_every_dtype(path):
    arrays = {code: np.array([0, 1, 2]).astype(code) for code in "?bhilqBHILQefd"}
    save_checkpoint(path, {}, arrays=arrays)
    got = load_checkpoint(path).arrays
    assert_same_bits(got, arrays)
    assert all(got[code].dtype == a.dtype for code, a in arrays.items())


def test_a_damaged_state_with_arrays(path):
    rng = np.random.Generator(np.random.MT19937(0))
    save_checkpoint(path, {}, generators={"a": rng})
    rewritten(path, lambda about, tensors: about["generators"]["a"]["state"]["key"].pop())
    with pytest.raises(ValueError, match=r"^generators\['a'\]: the state in .* is damaged"):
        load_checkpoint(path, generators={"a": rng})


def test_unchanged_metadata_are_accepted(path):
    run = Run()
    run.train(1)
    run.save(path)
    rewritten(path, lambda about, tensors: None)
    assert_same_bits(Run(seed=1).load(path).everything(), run.everything())


def test_truncated_files(path):
    save_checkpoint(path, {"head": Linear(1, 2, seed=0)}, arrays={"a": np.ones(3)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected a checkpoint that fastrnn saved"):
            load_checkpoint(path)


def test_files_that_are_not_there(path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)
    with pytest.raises(TypeError, match=r"^path: "):
        load_checkpoint(3)
