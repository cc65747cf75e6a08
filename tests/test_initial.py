"""Initial values: the uniform ones of every layer, and what `init` asks for instead."""

import math

import numpy as np
import oracles
import pytest
from helpers import assert_same_bits

from fastrnn import initial as initial_values
from fastrnn.initial import initialise
from fastrnn.storage import parameter_shapes

INPUTS, HIDDEN = 5, 12
LSTM, COUPLED, ORIGINAL = {}, {"coupled": True}, {"forget_gate": False}


def initial(cell, init, options=LSTM, dtype=np.float64, hidden_size=HIDDEN, seed=0, **sizes):
    """The parameters of a layer of two layers and two directions, or of other sizes."""
    sizes = {"input_size": INPUTS, "hidden_size": hidden_size, "num_layers": 2, "bidirectional": True, **sizes}
    params = {name: np.full(shape, np.nan, dtype) for name, shape in parameter_shapes(cell, sizes | options)}
    arrays = dict(params)
    initialise(params, cell, hidden_size, init, np.random.default_rng(seed), coupled=options.get("coupled", False))
    assert all(params[name] is arrays[name] for name in arrays)
    assert all(np.isfinite(p).all() for p in params.values())
    return params


def of(params, stem):
    """All parameters of that stem, by the suffix of their names."""
    return {name.removeprefix(stem): p for name, p in params.items() if name.startswith(stem)}


def blocks(params, stem, hidden_size=HIDDEN):
    found = of(params, stem)
    assert len(found) == 4
    return {suffix: p.reshape(-1, hidden_size, *p.shape[1:]) for suffix, p in found.items()}


def assert_the_rest_is_uniform(params, uniform, changed):
    """All but the blocks `changed`, {stem: gates}, are as they are without `init`."""
    for name, p in params.items():
        stem = name.partition("_l")[0]
        rest = np.ones(p.shape, bool)
        for gate in changed.get(stem, ()):
            rest[gate * HIDDEN : (gate + 1) * HIDDEN] = False
        assert np.array_equal(p[rest], uniform[name][rest]), name
        assert rest.all() or not np.array_equal(p[~rest], uniform[name][~rest]), name


CELLS = [
    ("RNN", {}),
    ("LSTM", LSTM),
    ("LSTM", COUPLED),
    ("LSTM", ORIGINAL),
    ("LSTM", {"proj_size": 3, "peephole": True}),
    ("GRU", {}),
    ("CEC", {}),
    ("TDNN", {"context": [-1, 0, 3]}),
]


@pytest.mark.parametrize(("cell", "options"), CELLS)
def test_uniform_in_the_order_of_the_parameters(cell, options, dtype):
    rng = np.random.default_rng(0)
    bound = 1 / math.sqrt(HIDDEN)
    for name, p in initial(cell, None, options, dtype).items():
        assert_same_bits({name: p}, {name: rng.uniform(-bound, bound, p.shape).astype(dtype)})
    rng = np.random.default_rng(0)
    largest = max(np.abs(p).max() for p in initial(cell, None, options, dtype).values())
    assert 0.9 * bound < largest <= bound


def test_numbers_drawn_some_rows_at_a_time(monkeypatch, dtype):
    """Are those drawn at once, wherever the parameter lies."""
    want = initial("LSTM", None, dtype=dtype, seed=7)
    monkeypatch.setattr(initial_values, "_AT_ONCE", 3 * INPUTS + 1)
    assert_same_bits(initial("LSTM", None, dtype=dtype, seed=7), want)
    odd = {name: np.empty(p.shape, dtype, order="F") for name, p in want.items()}
    initialise(odd, "LSTM", HIDDEN, None, np.random.default_rng(7))
    assert_same_bits(odd, want)


def test_seeds_keep_their_meaning(backend, dtype):
    layer = backend.RNN(INPUTS, HIDDEN, num_layers=2, bidirectional=True, dtype=dtype, seed=7)
    assert_same_bits(layer.params, initial("RNN", None, dtype=dtype, seed=7))


@pytest.mark.parametrize(
    ("cell", "init"),
    [("RNN", "identity"), ("LSTM", ("orthogonal", "forget_bias")), ("GRU", {"chrono": 50, "orthogonal": 1})],
)
def test_the_generator_alone_decides(cell, init):
    assert_same_bits(initial(cell, init), initial(cell, init))
    assert not np.array_equal(*(initial(cell, init, seed=seed)["weight_ih_l0"] for seed in (0, 1)))
    narrow, wide = (initial(cell, init, dtype=dtype) for dtype in (np.float32, np.float64))
    assert_same_bits(narrow, {name: p.astype(np.float32) for name, p in wide.items()})


def test_the_order_of_names_does_not_matter():
    init = {"chrono": 50, "orthogonal": 2.0}
    assert_same_bits(initial("LSTM", init), initial("LSTM", dict(reversed(init.items()))))
    forms = (["orthogonal"], ("orthogonal",), {"orthogonal"}, iter(["orthogonal"]), {"orthogonal": 1}, "orthogonal")
    for form in forms:
        assert_same_bits(initial("LSTM", form), initial("LSTM", {"orthogonal": 1.0}))
    assert_same_bits(initial("LSTM", ()), initial("LSTM", None))


# ---- identity ----


@pytest.mark.parametrize("scale", [1, 0.01, -2.5, np.float32(0.5)])
def test_identity(scale, dtype):
    params = initial("RNN", {"identity": scale}, dtype=dtype)
    assert_the_rest_is_uniform(
        params, initial("RNN", None, dtype=dtype), {"weight_hh": [0], "bias_ih": [0], "bias_hh": [0]}
    )
    for R in of(params, "weight_hh").values():
        assert np.array_equal(R, scale * np.eye(HIDDEN, dtype=dtype))
    for b in of(params, "bias").values():
        assert not b.any()


def test_identity_repeats_the_state_of_a_rectifier(rng):
    params = initial("RNN", "identity", num_layers=1, bidirectional=False)
    state = rng.random((1, 1, HIDDEN))
    results = oracles.run("RNN", {"nonlinearity": "relu"}, params, np.zeros((9, 1, INPUTS)), (state,), [9]).results
    assert np.array_equal(results["y"], np.repeat(state, 9, axis=0))


def test_identity_without_biases():
    params = initial("RNN", "identity", bias=False)
    assert all(np.array_equal(R, np.eye(HIDDEN)) for R in of(params, "weight_hh").values())


# ---- orthogonal ----


@pytest.mark.parametrize(("cell", "options"), CELLS[:6])
@pytest.mark.parametrize("gain", [1, 1.5])
def test_orthogonal(cell, options, gain, dtype):
    params = initial(cell, {"orthogonal": gain}, options, dtype)
    G = len(params["weight_hh_l0"]) // HIDDEN
    assert_the_rest_is_uniform(params, initial(cell, None, options, dtype), {"weight_hh": range(G)})
    seen = []
    for R in blocks(params, "weight_hh").values():
        assert R.shape == (G, HIDDEN, options.get("proj_size", HIDDEN))
        for block in R:
            square = block.T.astype(np.float64) @ block
            assert np.abs(square - gain**2 * np.eye(len(square))).max() < 20 * np.finfo(dtype).eps
            assert not any(np.array_equal(block, other) for other in seen)
            seen.append(block)


def test_orthogonal_ones_are_of_all_kinds():
    """With the signs that a QR prefers, half of the matrices would never come up."""
    angles, determinants = [], []
    for seed in range(400):
        R = initial("RNN", "orthogonal", hidden_size=2, num_layers=1, bidirectional=False, seed=seed)["weight_hh_l0"]
        angles.append(math.atan2(R[1, 0], R[0, 0]))
        determinants.append(np.linalg.det(R))
    assert 150 < np.sum(np.array(determinants) > 0) < 250
    quarters = np.histogram(angles, np.linspace(-np.pi, np.pi, 5))[0]
    assert (quarters > 70).all()


# ---- the biases of the gate that forgets ----


@pytest.mark.parametrize("b", [1, -2.5, 3])
@pytest.mark.parametrize(("options", "gate", "sign"), [(LSTM, 1, 1), (COUPLED, 0, -1)])
def test_forget_bias(options, gate, sign, b, dtype):
    params = initial("LSTM", {"forget_bias": b}, options, dtype)
    changed = {"bias_ih": [gate], "bias_hh": [gate]}
    assert_the_rest_is_uniform(params, initial("LSTM", None, options, dtype), changed)
    for suffix, b_ih in blocks(params, "bias_ih").items():
        assert (b_ih[gate] == sign * b).all()
        assert (blocks(params, "bias_hh")[suffix][gate] == 0).all()


def test_forget_bias_is_1_unless_given():
    assert_same_bits(initial("LSTM", "forget_bias"), initial("LSTM", {"forget_bias": 1}))


# The gates whose biases are log u and -log u.
CHRONO = [("LSTM", LSTM, 1, 0), ("LSTM", COUPLED, None, 0), ("GRU", {}, 1, None)]


@pytest.mark.parametrize(("cell", "options", "plus", "minus"), CHRONO)
def test_chrono(cell, options, plus, minus, dtype):
    params = initial(cell, {"chrono": 784}, options, dtype)
    gates = [gate for gate in (plus, minus) if gate is not None]
    changed = {"bias_ih": gates, "bias_hh": gates}
    assert_the_rest_is_uniform(params, initial(cell, None, options, dtype), changed)
    seen = []
    for suffix, b_ih in blocks(params, "bias_ih").items():
        log_u = b_ih[plus] if plus is not None else -b_ih[minus]
        if len(gates) == 2:
            assert np.array_equal(b_ih[minus], -b_ih[plus])
        assert (log_u >= 0).all()
        assert (log_u <= math.log(783) * (1 + 1e-6)).all()
        assert len(set(log_u)) == HIDDEN
        assert not any(np.array_equal(log_u, other) for other in seen)
        seen.append(log_u)
        assert not blocks(params, "bias_hh")[suffix][gates].any()


@pytest.mark.parametrize(("cell", "options", "plus", "minus"), CHRONO)
@pytest.mark.parametrize("longest", [3, 100, 2.5, np.int64(784)])
def test_times_are_uniform(cell, options, plus, minus, longest, rng):
    H, G = 4000, 3 if options or cell == "GRU" else 4
    params = {"bias_ih_l0": np.empty(G * H), "bias_hh_l0": np.empty(G * H)}
    initialise(params, cell, H, {"chrono": longest}, rng, **options)
    b = params["bias_ih_l0"].reshape(G, H)
    counts = np.histogram(np.exp(b[plus] if plus is not None else -b[minus]), np.linspace(1, longest - 1, 5))[0]
    assert counts.sum() >= H - 1  # exp(log(u)) rounds
    assert (np.abs(counts - H / 4) < 5 * math.sqrt(H * 3 / 16)).all()


def test_the_shortest_time():
    params = initial("LSTM", {"chrono": 2})
    assert all(not b[:2].any() for b in blocks(params, "bias_ih").values())


@pytest.mark.parametrize(("cell", "options"), [("LSTM", LSTM), ("LSTM", COUPLED), ("GRU", {})])
def test_chrono_remembers(cell, options):
    """Where nothing but biases speaks, a state decays within about T_max steps."""
    T = 60
    params = initial(cell, {"chrono": T}, options, num_layers=1, bidirectional=False, input_size=1)
    for name, p in params.items():
        if name.startswith("weight"):
            p[...] = 0
    state = tuple(np.ones((1, 1, HIDDEN)) for _ in range(2 if cell == "LSTM" else 1))
    kept = {}
    for biases in ("chrono", "none"):
        G = len(params["bias_ih_l0"]) // HIDDEN
        params["bias_ih_l0"].reshape(G, HIDDEN)[-1 if cell == "GRU" else G - 2] = 0  # the candidate
        params["bias_hh_l0"].reshape(G, HIDDEN)[-1 if cell == "GRU" else G - 2] = 0
        results = oracles.run(cell, options, params, np.zeros((T, 1, 1)), state, [T]).results
        kept[biases] = np.median(results["state[1]" if cell == "LSTM" else "state[0]"])
        params["bias_ih_l0"][...] = 0
    assert 0.02 < kept["chrono"] < 0.9
    assert kept["none"] < 1e-6


# ---- Errors. ----


@pytest.mark.parametrize(
    ("cell", "options", "init", "words"),
    [
        ("LSTM", LSTM, "identity", "RNN LSTM"),
        ("GRU", {}, "identity", "RNN GRU"),
        ("CEC", {}, "identity", "RNN CEC"),
        ("TDNN", {}, "identity", "RNN TDNN"),
        ("CEC", {}, "orthogonal", "weight_hh CEC"),
        ("TDNN", {}, "orthogonal", "weight_hh TDNN"),
        ("RNN", {}, "forget_bias", "gate RNN"),
        ("GRU", {}, "forget_bias", "LSTM GRU chrono"),
        ("LSTM", ORIGINAL, "forget_bias", "forget_gate=False"),
        ("LSTM", ORIGINAL, {"chrono": 9}, "forget_gate=False"),
        ("RNN", {}, {"chrono": 9}, "gate RNN"),
        ("CEC", {}, {"chrono": 9}, "gate CEC"),
        ("TDNN", {}, {"chrono": 9}, "gate TDNN"),
        ("LSTM", {"bias": False}, "forget_bias", "bias=False"),
        ("LSTM", {"bias": False, "coupled": True}, {"chrono": 9}, "bias=False"),
        ("GRU", {"bias": False}, {"chrono": 9}, "bias=False"),
        ("LSTM", LSTM, "zeros", "'orthogonal' 'zeros'"),
        ("LSTM", LSTM, ["orthogonal", "zeros"], "'orthogonal' 'zeros'"),
        ("LSTM", LSTM, {"zeros": 1}, "'orthogonal' 'zeros'"),
        ("LSTM", LSTM, [["orthogonal"]], "'orthogonal' ['orthogonal']"),
        ("LSTM", LSTM, "", "'orthogonal' ''"),
        ("LSTM", LSTM, "chrono", "chrono none"),
        ("LSTM", LSTM, ["orthogonal", "chrono"], "chrono none"),
        ("LSTM", LSTM, {"chrono": 1.9}, "chrono 2 1.9"),
        ("LSTM", LSTM, {"chrono": -5}, "chrono 2 -5"),
        ("LSTM", LSTM, {"chrono": np.inf}, "chrono finite inf"),
        ("LSTM", LSTM, {"chrono": 10**400}, "chrono finite 1000"),
        ("LSTM", LSTM, {"orthogonal": np.nan}, "orthogonal finite nan"),
        ("RNN", {}, ["identity", "orthogonal"], "identity orthogonal both"),
        ("LSTM", LSTM, {"forget_bias": 1, "chrono": 9}, "forget_bias chrono both"),
    ],
    ids=str,
)
def test_what_a_layer_cannot_have(cell, options, init, words):
    with pytest.raises(ValueError, match=r"^init: ") as caught:
        initial(cell, init, options)
    assert all(word in str(caught.value) for word in words.split()), caught.value


@pytest.mark.parametrize("init", [5, 1.0, True, {"orthogonal": True}, {"chrono": "9"}, {"forget_bias": None}], ids=str)
def test_what_is_no_init(init):
    with pytest.raises(TypeError, match=r"^init: "):
        initial("LSTM", init)


def test_a_refused_init_leaves_the_parameters_and_the_generator_alone():
    params, rng = (
        {"weight_ih_l0": np.ones((HIDDEN, 3)), "weight_hh_l0": np.ones((HIDDEN, HIDDEN))},
        np.random.default_rng(0),
    )
    before = rng.bit_generator.state
    with pytest.raises(ValueError, match=r"^init: "):
        initialise(params, "RNN", HIDDEN, {"chrono": 9}, rng)
    assert all((p == 1).all() for p in params.values())
    assert rng.bit_generator.state == before
