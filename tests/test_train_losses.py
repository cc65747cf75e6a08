"""The losses with lengths: padded and ragged, and the mean squared error against its formula."""

import numpy as np
import pytest
from helpers import differences, mask_of, normal, pack, poison

import fastrnn
from fastrnn.train import Linear, mean_squared_error, softmax_cross_entropy

STEPS, BATCH, OUTPUTS = 6, 4, 3
LENGTHS = (2, STEPS, 0, 5)
REAL = mask_of(LENGTHS, STEPS)


class Kind:
    """A loss, and how to draw its targets."""

    def __init__(self, loss):
        self.loss = loss

    def draw(self, rng, dtype=np.float64):
        """Values (T, B, O) and targets, time-major."""
        y = normal(rng, (STEPS, BATCH, OUTPUTS), dtype)
        if self.loss is mean_squared_error:
            return y, normal(rng, y.shape, dtype)
        return y, rng.integers(0, OUTPUTS, (STEPS, BATCH))

    def spoil(self, targets):
        """Targets that must not be read, past the lengths."""
        if targets.ndim == 3:
            return poison(targets, LENGTHS)
        return np.where(REAL, targets, -12345)


@pytest.fixture(params=[softmax_cross_entropy, mean_squared_error], ids=lambda loss: loss.__name__)
def kind(request):
    return Kind(request.param)


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_counts_nothing_and_is_not_read(kind, dtype, batch_first, rng):
    y, targets = kind.draw(rng, dtype)
    want_loss, want_gradient = kind.loss(y, targets)
    y, targets = poison(y, LENGTHS), kind.spoil(targets)
    if batch_first:
        y, targets = y.swapaxes(0, 1), targets.swapaxes(0, 1)
    loss, gradient = kind.loss(y, targets, lengths=LENGTHS, batch_first=batch_first)
    assert loss.dtype == gradient.dtype == dtype
    assert (loss.shape, gradient.shape) == (y.shape[:-1], y.shape)
    if batch_first:
        loss, gradient = loss.swapaxes(0, 1), gradient.swapaxes(0, 1)
    np.testing.assert_array_equal(loss, np.where(REAL, want_loss, 0))
    np.testing.assert_array_equal(gradient, np.where(REAL[..., None], want_gradient, 0))


def test_ragged(kind, rng):
    y, targets = kind.draw(rng)
    want = kind.loss(y, targets)
    got = kind.loss(pack(y, LENGTHS), pack(targets, LENGTHS), lengths=LENGTHS)
    for array, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(array, pack(expected, LENGTHS))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_gradient_is_that_of_central_differences(kind, lengths, rng):
    y, targets = kind.draw(rng)
    _, gradient = kind.loss(y, targets, lengths=lengths)
    np.testing.assert_allclose(
        gradient, differences(lambda: kind.loss(y, targets, lengths=lengths)[0].sum(), y), atol=1e-8
    )


def test_mean_squared_error_is_its_formula():
    loss, dy = mean_squared_error([[1.0, 2.0], [0.0, -1.0]], [[1, 4], [3, -1]])
    np.testing.assert_allclose(loss, [2.0, 4.5])
    np.testing.assert_allclose(dy, [[0, -2], [-3, 0]])


@pytest.mark.parametrize(
    ("given", "computed"), [("f4", "f4"), ("f8", "f8"), (">f4", "f4"), (">f8", "f8"), ("i4", "f8"), ("f2", "f8")]
)
def test_dtypes_of_mean_squared_error(given, computed):
    loss, dy = mean_squared_error(np.ones((2, 3), given), np.ones((2, 3), np.float64))
    assert loss.dtype == dy.dtype == np.dtype(computed)


def test_inputs_are_not_changed(kind, rng):
    y, targets = kind.draw(rng)
    before = y.copy(), targets.copy()
    kind.loss(y, targets, lengths=LENGTHS)
    np.testing.assert_array_equal(y, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_layer_head_and_loss_in_every_layout(kind, rng):
    """The same gradients of a whole model from padded, batch-first and ragged data."""
    layer = fastrnn.GRU(2, 5, dtype=np.float64, seed=0)
    twin = fastrnn.GRU(2, 5, batch_first=True, dtype=np.float64, seed=0)
    head = Linear(5, OUTPUTS, dtype=np.float64, seed=0)
    x = normal(rng, (STEPS, BATCH, 2))
    targets = kind.draw(rng)[1]

    def gradients(layer, x, targets, **layout):
        y, _, tape = layer.forward(x, lengths=LENGTHS)
        logits, head_tape = head.forward(y)
        head_grads = head.backward(head_tape, kind.loss(logits, targets, lengths=LENGTHS, **layout)[1])
        return layer.backward(tape, head_grads.x).params | head_grads.params

    want = gradients(layer, pack(x, LENGTHS), pack(targets, LENGTHS))
    padded = poison(x, LENGTHS), kind.spoil(targets)
    turned = [a.swapaxes(0, 1) for a in padded]
    for got in (gradients(layer, *padded), gradients(twin, *turned, batch_first=True)):
        for name, expected in want.items():
            np.testing.assert_allclose(got[name], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "lengths", "options", "error", "message"),
    [
        ((6, 4, 3), [1, 2], {}, ValueError, r"lengths: expected shape \(4,\), got \(2,\)"),
        ((6, 4, 3), [1, 2, 7, 0], {}, ValueError, "lengths: expected 0 to 6, got 7 at index 2"),
        ((4, 6, 3), [1, 2, 7, 0], {"batch_first": True}, ValueError, "lengths: expected 0 to 6, got 7 at index 2"),
        ((6, 4, 3), [1.0, 2, 3, 0], {}, TypeError, "lengths: expected integers, got dtype float64"),
        ((6, 3), [1, 2], {}, ValueError, "lengths: expected a sum of 6, the rows of the ragged {}, got 3"),
        ((6, 4, 2, 3), [1, 2], {}, ValueError, r"{}: expected shape \(T, B, 3\).*got \(6, 4, 2, 3\)"),
        ((6, 4, 3), [1, 2, 3, 4], {"batch_first": 1}, TypeError, "batch_first: expected True or False, got 1"),
    ],
)
def test_bad_lengths(kind, shape, lengths, options, error, message):
    name = "y" if kind.loss is mean_squared_error else "logits"
    targets = np.zeros(shape if name == "y" else shape[:-1], int)
    with pytest.raises(error, match="^" + message.replace("{}", name)):
        kind.loss(np.zeros(shape), targets, lengths=lengths, **options)


def test_a_target_beyond_the_classes_at_a_real_step():
    with pytest.raises(ValueError, match=r"^targets: expected classes in 0\.\.2, got 0\.\.3"):
        softmax_cross_entropy(np.zeros((2, 1, 3)), [[3], [0]], lengths=[2])


@pytest.mark.parametrize(
    ("y", "targets", "error", "message"),
    [
        (np.zeros((2, 3), complex), np.zeros((2, 3)), TypeError, "y: expected an array of real"),
        (np.zeros((2, 3)), np.zeros((2, 3), complex), TypeError, "targets: expected an array of real"),
        (np.zeros((2, 0)), np.zeros((2, 0)), ValueError, r"y: expected shape \(\.\.\., O\) with O >= 1, got \(2, 0\)"),
        (np.float64(1), np.float64(1), ValueError, r"y: expected shape .*got \(\)"),
        (np.zeros((2, 3)), np.zeros(2), ValueError, r"targets: expected shape \(2, 3\), got \(2,\)"),
        ([[1.0], [2.0, 3.0]], np.zeros(2), ValueError, "y: expected an array of real numbers, got list"),
    ],
)
def test_bad_input_of_mean_squared_error(y, targets, error, message):
    with pytest.raises(error, match=f"^{message}"):
        mean_squared_error(y, targets)
