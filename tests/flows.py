"""What the tests of the gradient flow share: its implementations, layers to study, comparisons."""

from typing import NamedTuple

import numpy as np
from helpers import ROWS, enliven, make, normal, normal_like, row_of

import fastrnn
from fastrnn import reference


class Implementation(NamedTuple):
    function: object
    close: float  #: the relative error that its singular values, and their products over all steps, may have


# Whole singular value decompositions: some hundred steps and units of rounding. The iterations stop earlier.
IMPLEMENTATIONS = {
    "reference": Implementation(reference.gradient_flow, 1e-12),
    "kernels": Implementation(fastrnn.gradient_flow, 1e-6),
}

RECURRENT = tuple(row for row in ROWS if row.parts)
CELLS = tuple(
    row_of(name)
    for name in (
        "rnn_tanh",
        "rnn_relu",
        "lstm",
        "lstm_original_projected",
        "lstm_peephole_projected",
        "lstm_coupled_peephole",
        "gru",
        "gru_reset_before",
        "cec_tanh_tanh",
    )
)

STEPS, BATCH, INPUTS, HIDDEN = 9, 3, 4, 6
LENGTHS = np.array([5, 0, 9])
BY_STEP = ("gamma", "gamma_f", "bound", "flow", "grad_norm")


def study(row, rng, *, steps=STEPS, num_layers=1, backend=reference, **options):
    """A lively layer, and arguments x, dy and state for its gradient flow."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, num_layers, **{"dtype": np.float64, **options}), row, rng)
    x = normal(rng, (steps, BATCH, INPUTS))
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    y, state = layer(x)
    return layer, x, normal_like(rng, y), normal_like(rng, state)


def suffix_of(layer, level, direction):
    return f"_l{level % layer.num_layers}" + "_reverse" * direction


def alone(layer, row, level=-1, direction=0):
    """A layer of its own with the parameters of one level and direction of a stack."""
    suffix = suffix_of(layer, level, direction)
    params = {name.removesuffix(suffix) + "_l0": p for name, p in layer.params.items() if name.endswith(suffix)}
    single = make(row, reference, params["weight_ih_l0"].shape[1], layer.hidden_size, dtype=np.float64)
    single.load_state_dict(params)
    return single


def recurrent_gradient(layer, grads, level=-1, direction=0):
    """dJ/dW_hh, or dJ/dW_ih if there is none, of one level and direction."""
    suffix = suffix_of(layer, level, direction)
    return grads.params.get("weight_hh" + suffix, grads.params["weight_ih" + suffix])


def assert_flows_agree(got, want, rtol=1e-6, note=""):
    """All fields: equal to `rtol` of each field's own greatest value where it is a sum of many terms, else of each
    value, with NaN in the same places."""
    assert (got.cell, got.verdict) == (want.cell, want.verdict), note
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_array_equal(got.horizon, want.horizon)
    assert got.gates.keys() == want.gates.keys()
    fields = {f"gates {name}": (got.gates[name], want.gates[name]) for name in want.gates}
    fields |= {name: (getattr(got, name), getattr(want, name)) for name in (*BY_STEP, "gamma_u", "lag_gradient")}
    fields["lag_matrices"] = got.lag_matrices, want.lag_matrices
    for name, (ours, theirs) in fields.items():
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            scale = (
                np.abs(np.nan_to_num(theirs)).max(initial=0)
                if name == "lag_matrices" or name.startswith("gates")
                else 0
            )
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * scale, err_msg=f"{note} {name}")


def assert_form(flow, T, B):
    """Shapes, dtypes, and what stands where a sequence has no step."""
    active = np.arange(T)[:, None] < flow.lengths
    known = np.arange(T + 1)[:, None] <= flow.lengths
    assert (flow.lengths.dtype, flow.horizon.dtype) == (np.int64, np.int64)
    assert flow.flow.shape == (T + 1, B)
    np.testing.assert_array_equal(np.isfinite(flow.flow), known)
    for name in BY_STEP:
        array = getattr(flow, name)
        if array is None:
            assert flow.cell != "RNN"
            continue
        assert array.dtype == np.float64
        if name != "flow":
            assert array.shape == (T, B)
            if name == "grad_norm":
                assert not array[~active].any()
                assert (array[active] > 0).all()
            else:
                np.testing.assert_array_equal(np.isfinite(array), active)
    assert flow.lag_gradient.dtype == np.float64
    for array in flow.gates.values():
        np.testing.assert_array_equal(np.isfinite(array), active)
