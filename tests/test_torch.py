"""Against PyTorch: layers, directions, biases, projections, layouts, packings; long runs; NaN and infinities."""

import itertools

import numpy as np
import pytest
from helpers import as_tuple, assert_close, assert_meaningful, map_state, mask_of, meaningful_part, row_of, train

import fastrnn

torch = pytest.importorskip("torch")

# What it says once in a process.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

RTOL, ATOL = 1e-5, 1e-6
STEPS, BATCH, INPUTS, HIDDEN = 11, 5, 6, 9
LENGTHS = np.array([4, 11, 1, 7, 11])

KINDS = [
    ("RNN", {"nonlinearity": "tanh"}),
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 4}),
    ("GRU", {}),
]
KIND_IDS = ["rnn_tanh", "rnn_relu", "lstm", "lstm_projected", "gru"]
FLAGS = [False, True]

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(params=KINDS, ids=KIND_IDS)
def kind(request):
    return request.param


def pair(kind, *sizes, dtype=torch.float32, **options):
    """The same layer twice: PyTorch's, with its own initial values, and ours with those loaded."""
    torch.manual_seed(0)
    cls, own = kind
    theirs = getattr(torch.nn, cls)(*sizes, dtype=dtype, **own, **options)
    ours = getattr(fastrnn, cls)(*sizes, dtype=str(dtype).removeprefix("torch."), **own, **options)
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    return ours, theirs


def train_torch(module, x, state, dy, dstate, lengths):
    """Outputs and gradients by PyTorch, named as `helpers.train` names them."""
    x, state = (map_state(lambda a: torch.tensor(a, requires_grad=True), a) for a in (x, state))
    if lengths is None:
        y, end = module(x, state)
    else:
        rnn = torch.nn.utils.rnn
        options = {"batch_first": module.batch_first}
        packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False, **options)
        packed, end = module(packed, state)
        y, _ = rnn.pad_packed_sequence(packed, total_length=x.shape[1 if module.batch_first else 0], **options)
    ends = zip(as_tuple(end), as_tuple(dstate), strict=True)
    ((y * torch.tensor(dy)).sum() + sum((s * torch.tensor(ds)).sum() for s, ds in ends)).backward()
    results = {"y": y, "grads.x": x.grad}
    results |= {f"state[{i}]": s for i, s in enumerate(as_tuple(end))}
    results |= {f"grads.state[{i}]": s.grad for i, s in enumerate(as_tuple(state))}
    results |= {f"grads.{name}": p.grad for name, p in module.named_parameters()}
    return {name: a.detach().numpy() for name, a in results.items()}


@both_dtypes
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "batch_first", "packed"), list(itertools.product([1, 2], *[FLAGS] * 4))
)
def test_every_combination(kind, dtype, num_layers, bidirectional, bias, batch_first, packed, rng):
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    ours, theirs = pair(kind, INPUTS, HIDDEN, num_layers, dtype=dtype, **options)
    precision = next(iter(ours.params.values())).dtype

    def normal(*dims):
        return rng.standard_normal(dims).astype(precision)

    def in_steps(*dims):
        return normal(BATCH, STEPS, *dims) if batch_first else normal(STEPS, BATCH, *dims)

    x = in_steps(INPUTS)
    y, like = ours(x)
    state = map_state(lambda s: normal(*s.shape), like)
    # A mean over the steps, as a training loss is: gradients of the size that the tolerances are meant for.
    dy = in_steps(y.shape[-1]) / precision.type(STEPS * BATCH)
    dstate = map_state(lambda s: normal(*s.shape) / precision.type(BATCH), like)
    lengths = LENGTHS if packed else None

    want = train_torch(theirs, x, state, dy, dstate, lengths)
    mask = mask_of(LENGTHS if packed else [STEPS] * BATCH, STEPS)
    assert_meaningful(meaningful_part(want, mask.T if batch_first else mask))
    got = train(ours, x, state, lengths, dy, dstate)
    assert got.keys() == want.keys()
    if dtype == torch.float64:
        assert_close(got, want, forward=1e-12, gradient=1e-12)
    for name, expected in want.items():
        assert got[name].dtype == precision
        assert np.allclose(got[name], expected, rtol=RTOL, atol=ATOL), name


def distances(kind, steps, batch, inputs, hidden, rng):
    """How far float32 is from float64, by the names of `helpers.train`: ours over PyTorch's own, in the root mean
    square and where each is farthest off."""
    ours, theirs = pair(kind, inputs, hidden)
    exact = getattr(fastrnn.reference, kind[0])(inputs, hidden, dtype=np.float64, **kind[1])
    exact.load_state_dict(ours.state_dict())
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    y, like = ours(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    zero = map_state(np.zeros_like, like)
    want = train(exact, x, zero, None, dy, zero)
    assert_meaningful(want)
    results = train(ours, x, zero, None, dy, zero), train_torch(theirs, x, zero, dy, zero, None)
    own, other = ({name: np.abs(a[name] - want[name]) for name in want} for a in results)
    root = {name: np.sqrt(np.mean(own[name] ** 2) / np.mean(other[name] ** 2)) for name in want}
    return root, {name: own[name].max() / other[name].max() for name in want}


@pytest.mark.parametrize("kind", [*KINDS, ("LSTM", {"proj_size": 16})], ids=[*KIND_IDS, "lstm_projected_to_a_quarter"])
def test_no_less_accurate_over_long_sequences(kind, rng):
    """At T = 1024: outputs, also where they are farthest off, and every gradient."""
    root, farthest = distances(kind, 1024, 16, 32, 64, rng)
    # PyTorch sums a projection to very few outputs in lanes.
    assert root["y"] <= (1.5 if kind[1].get("proj_size") == 4 else 1.25)
    assert farthest["y"] <= 2
    assert max(root.values()) <= 2, root


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "proj_size" not in kind[1]])
def test_no_less_accurate_with_many_units(kind, rng):
    """Sums of 512 to 2,048 products: outputs, states and every gradient."""
    root, farthest = distances(kind, 64, 8, 512, 512, rng)
    assert max(root.values()) <= 1.5, root
    assert max(farthest.values()) <= 2, farthest


@both_dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values(isa, kind, dtype, value, rng):
    """In an input, in each state, and in each parameter: the same class of result, everywhere."""
    ours, theirs = pair(kind, 5, 19, dtype=dtype)
    x = rng.standard_normal((6, 7, 5)).astype(next(iter(ours.params.values())).dtype)
    state = map_state(lambda s: rng.standard_normal(s.shape).astype(x.dtype), ours(x)[1])

    def check():
        with torch.no_grad():
            y, end = theirs(torch.tensor(x), map_state(torch.tensor, state))
        ours_y, ours_end = ours(x, state)
        for got, want in zip((ours_y, *as_tuple(ours_end)), (y, *as_tuple(end)), strict=True):
            for of_that_class in (np.isnan, np.isposinf, np.isneginf):
                assert np.array_equal(of_that_class(got), of_that_class(want.numpy()))
        return bool(torch.isfinite(y).all())

    for a in (x, *as_tuple(state)):
        kept, a[0, 3, 2] = a[0, 3, 2], value
        check()
        a[0, 3, 2] = kept
    for name, p in theirs.named_parameters():
        mine = ours.params[name].reshape(-1)
        for place in (3, mine.size // 2, mine.size - 1):  # of different gates
            kept, mine[place] = mine[place], value
            with torch.no_grad():
                p.view(-1)[place] = value
            check()
            mine[place] = kept
            with torch.no_grad():
                p.view(-1)[place] = float(kept)
    assert check()


def test_saturated_gates():
    """Inputs that drive the gates hard into saturation, and gradients that must not be NaN for it."""
    for name in ("lstm", "gru"):
        row = row_of(name)
        ours, theirs = pair((row.cls, {}), 3, 5)
        x = np.full((40, 2, 3), 1e3, np.float32)
        x[::3] *= -1
        y, state = ours(x)
        dy, dstate = np.ones_like(y), map_state(np.ones_like, state)
        start = map_state(np.zeros_like, state)
        want = train_torch(theirs, x, start, dy, dstate, None)
        got = train(ours, x, start, None, dy, dstate)
        for key, expected in want.items():
            assert np.isfinite(expected).all()
            assert np.allclose(got[key], expected, rtol=1e-4, atol=1e-5), key
