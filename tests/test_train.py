"""The training helpers, each against its formula."""

import numpy as np
import pytest
from helpers import differences

from fastrnn.train import SGD, Adam, Linear, softmax_cross_entropy, text_batches


class TestSoftmaxCrossEntropy:
    def test_loss_is_minus_log_of_the_softmax(self, rng):
        logits, targets = rng.normal(size=(4, 3, 5)), rng.integers(0, 5, (4, 3))
        loss, _ = softmax_cross_entropy(logits, targets)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(loss, -np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0]))

    def test_gradient_is_that_of_central_differences(self, rng):
        logits, targets = rng.normal(size=(3, 2, 4)), rng.integers(0, 4, (3, 2))
        _, dlogits = softmax_cross_entropy(logits, targets)
        expected = differences(lambda: softmax_cross_entropy(logits, targets)[0].sum(), logits)
        np.testing.assert_allclose(dlogits, expected, atol=1e-8)

    def test_large_logits_do_not_overflow(self):
        loss, dlogits = softmax_cross_entropy(np.array([[1e4, -1e4, 0.0]]), np.array([2]))
        assert loss == [1e4]
        assert dlogits.tolist() == [[1.0, 0.0, -1.0]]

    @pytest.mark.parametrize(("given", "computed"), [("f4", "f4"), ("f8", "f8"), ("i4", "f8"), ("f2", "f8")])
    def test_dtypes(self, given, computed):
        loss, dlogits = softmax_cross_entropy(np.ones((2, 3), given), np.array([0, 1], np.uint8))
        assert loss.dtype == dlogits.dtype == np.dtype(computed)

    def test_inputs_are_not_changed(self, rng):
        logits, targets = rng.normal(size=(2, 3)), np.array([0, 2])
        before = logits.copy()
        softmax_cross_entropy(logits, targets)
        np.testing.assert_array_equal(logits, before)

    def test_no_steps(self):
        loss, dlogits = softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int))
        assert loss.shape == (0,)
        assert dlogits.shape == (0, 3)

    @pytest.mark.parametrize(
        ("logits", "targets", "error", "message"),
        [
            (np.zeros((2, 3), complex), [0, 1], TypeError, "logits: expected an array of real"),
            (np.zeros((2, 3)), [0.0, 1.0], TypeError, "targets: expected integers"),
            (np.zeros((2, 0)), [0, 0], ValueError, "logits: expected shape"),
            (np.float64(0), 0, ValueError, "logits: expected shape"),
            (np.zeros((2, 3)), [0], ValueError, "targets: expected shape"),
            (np.zeros((2, 3)), [0, 3], ValueError, r"targets: expected classes in 0\.\.2"),
            (np.zeros((2, 3)), [-1, 0], ValueError, r"targets: expected classes in 0\.\.2"),
        ],
    )
    def test_bad_input(self, logits, targets, error, message):
        with pytest.raises(error, match=message):
            softmax_cross_entropy(logits, targets)


class TestOptimizers:
    def test_sgd_with_momentum(self):
        p = np.array([1.0, 2.0])
        optimizer = SGD({"p": p}, lr=0.1, momentum=0.5)
        optimizer.step({"p": np.array([1.0, -2.0])})
        np.testing.assert_allclose(p, [0.9, 2.2])
        optimizer.step({"p": np.array([1.0, 0.0])})  # v = [1.5, -1]
        np.testing.assert_allclose(p, [0.75, 2.3])

    def test_adam_is_algorithm_1_of_the_paper(self, rng):
        p = rng.normal(size=(2, 3))
        expected, m, v = p.copy(), np.zeros((2, 3)), np.zeros((2, 3))
        optimizer = Adam({"p": p}, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
        for n in range(1, 6):
            grad = rng.normal(size=(2, 3))
            optimizer.step({"p": grad})
            g = grad + 0.1 * expected
            m = 0.8 * m + 0.2 * g
            v = 0.95 * v + 0.05 * g**2
            expected -= 0.01 * (m / (1 - 0.8**n)) / (np.sqrt(v / (1 - 0.95**n)) + 1e-3)
            np.testing.assert_allclose(p, expected, rtol=1e-12)

    @pytest.mark.parametrize("kind", [SGD, Adam])
    def test_updates_in_place_and_in_the_type_of_the_parameter(self, kind):
        params = {"w": np.ones(3, np.float32)}
        kind(params, lr=0.1).step({"w": np.ones(3, np.float64)})
        assert params["w"].dtype == np.float32
        np.testing.assert_allclose(params["w"], 0.9, rtol=1e-6)

    @pytest.mark.parametrize("kind", [SGD, Adam])
    def test_learning_rate_may_change(self, kind):
        params = {"w": np.ones(3)}
        optimizer = kind(params, lr=0.1)
        optimizer.lr = 0.0
        optimizer.step({"w": np.ones(3)})
        assert params["w"].tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("kind", [SGD, Adam])
    @pytest.mark.parametrize(
        ("grads", "error", "message"),
        [
            ({"a": np.ones(2)}, ValueError, "keys"),
            ({"a": np.ones(2), "b": np.ones(2)}, ValueError, r"grads\['b'\]: expected shape \(3,\)"),
            (
                {"a": np.ones(2), "b": np.ones(3, complex)},
                TypeError,
                r"grads\['b'\]: expected an array of real",
            ),
        ],
    )
    def test_bad_gradients_change_nothing(self, kind, grads, error, message):
        params = {"a": np.ones(2), "b": np.ones(3)}
        with pytest.raises(error, match=message):
            kind(params, lr=0.1).step(grads)
        assert params["a"].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda p: SGD({"p": [1.0]}, 0.1), TypeError, "floating-point array, got list"),
            (lambda p: SGD({"p": np.ones(2, int)}, 0.1), TypeError, "floating-point array, got int64"),
            (lambda p: SGD(p, -0.1), ValueError, "lr"),
            (lambda p: SGD(p, 0.1, momentum=1.0), ValueError, "momentum"),
            (lambda p: Adam(p, float("nan")), ValueError, "lr"),
            (lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
            (lambda p: Adam(p, eps=-1.0), ValueError, "eps"),
            (lambda p: Adam(p, weight_decay=-1.0), ValueError, "weight_decay"),
        ],
    )
    def test_bad_settings(self, make, error, message):
        with pytest.raises(error, match=message):
            make({"p": np.ones(2)})


class TestLinear:
    def test_gradients_are_those_of_central_differences(self, rng):
        head = Linear(4, 3, dtype=np.float64, seed=0)
        x, dy = rng.normal(size=(5, 2, 4)), rng.normal(size=(5, 2, 3))
        y, tape = head.forward(x)
        np.testing.assert_allclose(y, x @ head.params["weight"].T + head.params["bias"])
        np.testing.assert_array_equal(head(x), y)
        grads = head.backward(tape, dy)

        weight, bias = head.params["weight"], head.params["bias"]
        for gradient, at in ((grads.x, x), (grads.params["weight"], weight), (grads.params["bias"], bias)):
            expected = differences(lambda: (dy * (x @ weight.T + bias)).sum(), at)
            np.testing.assert_allclose(gradient, expected, atol=1e-7)

    def test_seed_and_range_of_the_initial_values(self):
        one, same, other = (Linear(16, 8, seed=seed).params["weight"] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()
        assert one.dtype == np.float32
        assert 0.2 < np.abs(one).max() <= 0.25

    def test_the_tape_is_complete_in_itself(self):
        head, x, dy = Linear(4, 3, seed=0), np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
        _, tape = head.forward(x)
        before = head.backward(tape, dy)
        x[...] = 7
        head.params["weight"][...] = 7
        after = head.backward(tape, dy)
        np.testing.assert_array_equal(after.x, before.x)
        np.testing.assert_array_equal(after.params["weight"], before.params["weight"])

    @pytest.mark.parametrize("tape", [None, np.ones((2, 4)), Linear(4, 5).forward(np.ones((2, 4)))[1]])
    def test_what_is_no_tape(self, tape):
        with pytest.raises(TypeError, match=r"^tape: expected what this head's forward returned"):
            Linear(4, 3).backward(tape, np.ones((2, 3)))

    def test_bad_input(self):
        head = Linear(4, 3)
        _, tape = head.forward(np.zeros((2, 4)))
        with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 4\), got \(2, 3\)"):
            head(np.zeros((2, 3)))
        with pytest.raises(TypeError, match="x: expected an array of real"):
            head(np.zeros((2, 4), complex))
        with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3\)"):
            head.backward(tape, np.zeros((2, 4)))
        with pytest.raises(ValueError, match="output_size"):
            Linear(4, 0)
        with pytest.raises(ValueError, match="dtype"):
            Linear(4, 3, dtype=np.int32)


class TestTextBatches:
    def test_streams_are_contiguous_and_targets_are_one_later(self):
        batches = list(text_batches(np.arange(24), batch_size=2, steps=3))  # two streams of 11
        assert len(batches) == 3
        inputs = np.concatenate([inputs for inputs, _ in batches])
        np.testing.assert_array_equal(inputs, np.stack([np.arange(9), np.arange(11, 20)], axis=1))
        for inputs, targets in batches:
            np.testing.assert_array_equal(targets, inputs + 1)

    def test_smallest_text(self):
        ((inputs, targets),) = text_batches([1, 2, 3, 4, 5], batch_size=2, steps=2)
        assert inputs.tolist() == [[1, 3], [2, 4]]
        assert targets.tolist() == [[2, 4], [3, 5]]

    @pytest.mark.parametrize(
        ("ids", "batch_size", "steps", "error", "message"),
        [
            (np.arange(4), 2, 2, ValueError, r"at least batch_size \* steps \+ 1 = 5 of them, got 4"),
            (np.arange(8).reshape(2, 4), 2, 2, ValueError, "shape"),
            (np.arange(8.0), 2, 2, TypeError, "integers"),
            (np.arange(8), 0, 2, ValueError, "batch_size"),
            (np.arange(8), 2, 0, ValueError, "steps"),
        ],
    )
    def test_bad_input(self, ids, batch_size, steps, error, message):
        with pytest.raises(error, match=message):
            text_batches(ids, batch_size, steps)
