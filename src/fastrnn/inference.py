"""Running a layer without recording anything: whole sequences, and one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _core, checks, config

State = Any  #: h; (h, c) for LSTM, c for CEC, None for TDNN. As an argument any array-likes, and None for zeros


class Inference:
    """Calls that record nothing, in terms of ``_infer``."""

    def __call__(
        self, x: ArrayLike, state: State = None, *, lengths: ArrayLike | None = None
    ) -> tuple[np.ndarray, State]:
        """Run the layer and record nothing.

        Parameters
        ----------
        x : array ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)`` for one unbatched sequence, or
            ``(sum(lengths), I)``, a ragged batch
        state : the initial state: h ``(L*D, B, O)``; for LSTM the pair (h, c) with c ``(L*D, B, H)``, for CEC c, for
            TDNN there is none; None for zeros
        lengths : ``(B,)`` integers in 0..T, in any order; None if all are T

        Returns
        -------
        y : like x, with ``D*O`` last; zero past a sequence's length
        state : after each sequence's last step

        Raises
        ------
        ValueError, TypeError
            naming the argument that is wrong, what was expected and what came.
        """
        layer = self._layer
        x, batch = checks.sequences(x, lengths, layer.input_size, layer.batch_first, layer.dtype)
        y, states = self._infer(x, batch, layer._initial(state, batch.B, x.ndim))
        return y, layer._pack_state(states)

    def step(self, x_t: ArrayLike, state: State = None) -> tuple[np.ndarray, State]:
        """One time step of a stream: x_t ``(B, I)``, and the state that the last step returned (None: zeros). Returns
        y_t ``(B, O)`` and the state. ValueError if an output depends on other steps' inputs: of a bidirectional layer,
        and of a TDNN."""
        layer = self._layer
        layer._check_step()
        x_t = checks.real_array(x_t, "x_t", layer.dtype)
        if x_t.ndim != 2 or x_t.shape[1] != layer.input_size:
            raise ValueError(f"x_t: expected shape (B, {layer.input_size}), got {x_t.shape}")
        batch = _core.Batch(1, x_t.shape[0])
        y_t, states = self._infer(x_t, batch, layer._initial(state, batch.B, 3))
        return y_t, layer._pack_state(states)

    def _infer(self, x, batch, states):
        layer = self._layer
        threads = config.get_num_threads()
        new_states = _core.uninitialised(states)
        y = None
        for k, engine in enumerate(layer._engines):
            # A layer whose input is as wide as its output may write over it, unless it reads other steps.
            if k == 0 or layer.num_directions == 2 or not layer._states:
                x, y = (x if k == 0 else y), layer._empty(k, batch, x.shape, layer._output_width)
            else:
                x = y
            engine.run_forward(
                batch,
                self._prepared(k, threads),
                x,
                y,
                layer._states_of_layer(k, states),
                layer._states_of_layer(k, new_states),
                threads,
            )
        return y, new_states


class Frozen(Inference):
    """A layer's inference with prepared weights: what ``frozen()`` returns."""

    def __init__(self, layer):
        self._layer = layer
        threads = config.get_num_threads()
        self._packed = [
            engine.pack(weights, threads) for engine, weights in zip(layer._engines, layer._weights, strict=True)
        ]

    def _prepared(self, k, threads):
        return self._packed[k]

    # Nothing of it changes, so that it is its own copy; and it is of use on this processor alone.

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("a frozen layer cannot be pickled: pickle the layer, and freeze what comes of it")

    def __repr__(self):
        return f"{self._layer!r}.frozen()"
