"""Against PyTorch: all layers, directions, biases, layouts, packings; long runs; NaN and infinities."""

import itertools

import numpy as np
import pytest
from helpers import assert_meaningful, mask_of, meaningful_part, train

import fastrnn

torch = pytest.importorskip("torch")

RTOL, ATOL = 1e-5, 1e-6
STEPS, BATCH, INPUTS, HIDDEN = 11, 5, 6, 9
LENGTHS = np.array([4, 11, 1, 7, 11])

COMBINATIONS = list(
    itertools.product(["tanh", "relu"], [1, 2, 3], [False, True], [False, True], [False, True], [False, True])
)


def pair(nonlinearity, *sizes, dtype=torch.float32, **options):
    """The same layer twice: PyTorch's, with its own initial values, and ours with those loaded."""
    torch.manual_seed(0)
    theirs = torch.nn.RNN(*sizes, nonlinearity=nonlinearity, dtype=dtype, **options)
    ours = fastrnn.RNN(*sizes, nonlinearity=nonlinearity, dtype=str(dtype).removeprefix("torch."), **options)
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    return ours, theirs


def train_torch(module, x, state, dy, dstate, lengths):
    """Outputs and gradients by PyTorch, named as `helpers.train` names them."""
    x, state = (torch.tensor(a, requires_grad=True) for a in (x, state))
    if lengths is None:
        y, end = module(x, state)
    else:
        rnn = torch.nn.utils.rnn
        options = {"batch_first": module.batch_first}
        packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False, **options)
        packed, end = module(packed, state)
        y, _ = rnn.pad_packed_sequence(packed, total_length=x.shape[1 if module.batch_first else 0], **options)
    ((y * torch.tensor(dy)).sum() + (end * torch.tensor(dstate)).sum()).backward()
    results = {"y": y, "state[0]": end, "grads.x": x.grad, "grads.state[0]": state.grad}
    results |= {f"grads.{name}": p.grad for name, p in module.named_parameters()}
    return {name: a.detach().numpy() for name, a in results.items()}


@pytest.mark.parametrize(("nonlinearity", "num_layers", "bidirectional", "bias", "batch_first", "packed"), COMBINATIONS)
def test_rnn(nonlinearity, num_layers, bidirectional, bias, batch_first, packed, rng):
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    ours, theirs = pair(nonlinearity, INPUTS, HIDDEN, num_layers, **options)
    directions = 1 + bidirectional

    def normal(*dims):
        a = rng.standard_normal(dims).astype(np.float32)
        return a.swapaxes(0, 1) if batch_first and dims[0] == STEPS else a

    state = normal(num_layers * directions, BATCH, HIDDEN)
    # A mean over the steps, as a training loss is: gradients of the size that the tolerances are meant for.
    dy = normal(STEPS, BATCH, directions * HIDDEN) / np.float32(STEPS * BATCH)
    dstate = normal(num_layers * directions, BATCH, HIDDEN) / np.float32(BATCH)
    lengths = LENGTHS if packed else None
    x = normal(STEPS, BATCH, INPUTS)

    want = train_torch(theirs, x, state, dy, dstate, lengths)
    mask = mask_of(LENGTHS if packed else [STEPS] * BATCH, STEPS)
    assert_meaningful(meaningful_part(want, mask.T if batch_first else mask))
    got = train(ours, x, state, lengths, dy, dstate)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert np.allclose(got[name], expected, rtol=RTOL, atol=ATOL), name


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_no_less_accurate_over_long_sequences(nonlinearity, rng):
    """At T = 1024 in float32, at most twice PyTorch's own distance from float64."""
    ours, theirs = pair(nonlinearity, 32, 64)
    x = rng.standard_normal((1024, 4, 32)).astype(np.float32)
    exact = fastrnn.reference.RNN(32, 64, nonlinearity=nonlinearity, dtype=np.float64)
    exact.load_state_dict(ours.state_dict())
    want = exact(x)[0]
    assert_meaningful({"y": want})
    with torch.no_grad():
        limit = 2 * np.abs(theirs(torch.tensor(x))[0].numpy() - want).max()
    assert limit > 0
    assert np.abs(ours(x)[0] - want).max() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values(isa, nonlinearity, dtype, value, rng):
    """In an input, in the state, and in each parameter: the same class of result, everywhere."""
    ours, theirs = pair(nonlinearity, 5, 19, dtype=dtype)
    x = rng.standard_normal((6, 7, 5)).astype(next(iter(ours.params.values())).dtype)
    state = rng.standard_normal((1, 7, 19)).astype(x.dtype)

    def check():
        with torch.no_grad():
            want = theirs(torch.tensor(x), torch.tensor(state))[0].numpy()
        got = ours(x, state)[0]
        for kind in (np.isnan, np.isposinf, np.isneginf):
            assert np.array_equal(kind(got), kind(want))
        return np.isfinite(want).all()

    for a in (x, state):
        kept, a[0, 3, 2] = a[0, 3, 2], value
        check()
        a[0, 3, 2] = kept
    for name, p in theirs.named_parameters():
        mine = ours.params[name].reshape(-1)
        kept, mine[3] = mine[3], value
        with torch.no_grad():
            p.view(-1)[3] = value
        check()
        mine[3] = kept
        with torch.no_grad():
            p.view(-1)[3] = float(kept)
    assert check()
