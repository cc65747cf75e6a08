"""The cells' equations and nothing else: one sequence, one direction, one step at a time, in the dtype of their input.

Each cell takes p, a dict of its parameters by the stem of their names (a bias that is not there is 0), x (T, I), and a
tuple of initial states; it returns its records, lists of one array for each step, and the states after the last. Of the
records, h is the output, c and gates what a tape shows by these names, and pre what goes into the nonlinearity.
"""

import re
from collections import defaultdict, namedtuple

import numpy as np

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
}

logistic = ACTIVATIONS["logistic"]


def elman(p, x, state, nonlinearity="tanh"):
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)"""
    (h,), records = state, defaultdict(list)
    for x_t in x:
        a = p["weight_ih"] @ x_t + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]
        h = ACTIVATIONS[nonlinearity](a)
        records["h"].append(h)
        records["pre"].append(a)
    return records, (h,)


def lstm(p, x, state, proj_size=0, peephole=False, forget_gate=True, coupled=False):
    """c_t = f c_{t-1} + i g, h_t = o tanh(c_t), and h_t = W_hr (o tanh(c_t)) with a projection."""
    (h, c), records = state, defaultdict(list)
    names = "igo" if coupled or not forget_gate else "ifgo"
    for x_t in x:
        a = p["weight_ih"] @ x_t + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]
        a = dict(zip(names, np.split(a, len(names)), strict=True))
        if peephole:
            peep = dict(zip("ifo", np.split(p["weight_peep"], 3), strict=True))
            a |= {gate: a[gate] + peep[gate] * c for gate in "if" if gate in a}
        gates = {"i": logistic(a["i"]), "g": np.tanh(a["g"])}
        if coupled:
            f = 1 - gates["i"]
        elif forget_gate:
            f = gates["f"] = logistic(a["f"])
        else:
            f = 1
        c = f * c + gates["i"] * gates["g"]
        if peephole:
            a["o"] = a["o"] + peep["o"] * c
        gates["o"] = logistic(a["o"])
        h = gates["o"] * np.tanh(c)
        if proj_size:
            h = p["weight_hr"] @ h
        records["h"].append(h)
        records["c"].append(c)
        records["gates"].append(np.concatenate([gates[name] for name in names]))
    return records, (h, c)


def gru(p, x, state, reset_after=True):
    """h_t = (1 - z) n + z h_{t-1}; the reset gate acts after W_hn or before it."""
    (h,), records = state, defaultdict(list)
    U_r, U_z, U_n = np.split(p["weight_hh"], 3)
    b_r, b_z, b_n = np.split(p["bias_hh"] + np.zeros(len(p["weight_hh"])), 3)
    for x_t in x:
        a_r, a_z, a_n = np.split(p["weight_ih"] @ x_t + p["bias_ih"], 3)
        r = logistic(a_r + U_r @ h + b_r)
        z = logistic(a_z + U_z @ h + b_z)
        n = np.tanh(a_n + r * (U_n @ h + b_n) if reset_after else a_n + b_n + U_n @ (r * h))
        h = (1 - z) * n + z * h
        records["h"].append(h)
        records["gates"].append(np.concatenate([r, z, n]))
    return records, (h,)


def cec(p, x, state, nonlinearity="tanh", readout="identity"):
    """c_t = c_{t-1} + W_ih g(x_t) + b_ih, and the output is readout(c_t)."""
    (c,), records = state, defaultdict(list)
    for x_t in x:
        c = c + p["weight_ih"] @ ACTIVATIONS[nonlinearity](x_t) + p["bias_ih"]
        records["h"].append(ACTIVATIONS[readout](c))
        records["c"].append(c)
        records["pre"].append(x_t)
    return records, (c,)


def tdnn(p, x, state, context=(-2, -1, 0, 1, 2), nonlinearity="relu"):
    """y_t = f(sum over k of W_k x_{t + context[k]} + b), where x is zero outside the sequence."""
    records = defaultdict(list)
    for t in range(len(x)):
        terms = [p["weight"][:, k] @ x[t + o] for k, o in enumerate(context) if 0 <= t + o < len(x)]
        a = sum(terms, start=np.zeros(len(p["weight"]), x.dtype)) + p["bias"]
        records["h"].append(ACTIVATIONS[nonlinearity](a))
        records["pre"].append(a)
    return records, ()


CELLS = {"RNN": elman, "LSTM": lstm, "GRU": gru, "CEC": cec, "TDNN": tdnn}

Result = namedtuple("Result", "results layers pre")


def parameters(params, layer, reverse):
    """Those of one layer and direction, by the stem of their names."""
    suffix = f"_l{layer}" + "_reverse" * reverse
    given = {name.removesuffix(suffix): p for name, p in params.items() if name.endswith(suffix)}
    return {"bias": 0, "bias_ih": 0, "bias_hh": 0, **given}


def run(cls, options, params, x, state, lengths):
    """A whole stack on x (T, B, I), from a tuple of initial states.

    Returns outputs and final states, named as `helpers.infer` names them; the records of each layer as arrays
    (T, B, .), directions side by side, zero past a sequence's length; and all that went into a nonlinearity.
    """
    num_layers = 1 + max(int(re.search(r"_l(\d+)", name)[1]) for name in params)
    directions = 1 + any(name.endswith("_reverse") for name in params)
    end, layers, pre = tuple(s.copy() for s in state), [], []
    for layer in range(num_layers):
        both = defaultdict(list)
        for reverse in range(directions):
            p, k, order = parameters(params, layer, reverse), layer * directions + reverse, 1 - 2 * reverse
            arrays = {}
            for j, n in enumerate(lengths):
                records, after = CELLS[cls](p, x[:n, j][::order], tuple(s[k, j] for s in end), **options)
                for s, value in zip(end, after, strict=True):
                    s[k, j] = value
                pre += records.pop("pre", [])
                for name, values in records.items():
                    a = arrays.setdefault(name, np.zeros((*x.shape[:2], len(values[0])), x.dtype))
                    a[:n, j] = values[::order]
            for name, a in arrays.items():
                both[name].append(a)
        layers.append({name: np.concatenate(arrays, axis=-1) for name, arrays in both.items()})
        x = layers[-1]["h"]
    results = {"y": x} | {f"state[{i}]": s for i, s in enumerate(end)}
    return Result(results, layers, np.concatenate(pre) if pre else np.empty(0))
