from typing import final

import numpy as np
from numpy.typing import DTypeLike, NDArray

version: str
compiler: str

_States = tuple[NDArray, ...]
_Record = tuple[NDArray, NDArray, NDArray | None, _States, bool]
_Weights = tuple[tuple[NDArray | None, ...], ...]

def isas() -> tuple[str, ...]: ...
def get_isa() -> str: ...
def set_isa(name: str, what: str = ...) -> None: ...
def cells() -> tuple[str, ...]: ...
def processors() -> int: ...
def empty(shape: tuple[int, ...], dtype: np.dtype) -> NDArray: ...
def uninitialised(arrays: tuple[NDArray, ...]) -> tuple[NDArray, ...]: ...
def ready(array: object, dtype: np.dtype) -> bool: ...
def evaluate(function: str, x: NDArray) -> NDArray: ...
def product(a: NDArray, b: NDArray) -> NDArray: ...
def fma_loop(dtype: DTypeLike, rounds: int, threads: int = 1) -> int: ...
def read_loop(array: NDArray, rounds: int, threads: int = 1) -> int: ...

@final
class Batch:
    T: int
    B: int
    begin: int
    whole: Batch | None
    lengths: NDArray[np.int64] | None
    batch_first: bool
    def __init__(
        self,
        T: int,
        B: int,
        lengths: NDArray[np.int64] | None = None,
        batch_first: bool = False,
        ragged: bool = False,
    ) -> None: ...
    def window(self, begin: int, end: int) -> Batch: ...
    @staticmethod
    def gathered(rows: NDArray[np.int64], total: int) -> Batch: ...
    @property
    def ragged(self) -> bool: ...
    @property
    def padded(self) -> bool: ...

@final
class Packed: ...

@final
class Kernel:
    def __init__(
        self,
        cell: str,
        dtype: np.dtype,
        directions: int,
        I: int,
        H: int,
        O: int,
        context: NDArray[np.int64] | None = None,
    ) -> None: ...
    def empty(self, shape: tuple[int, ...], dtype: np.dtype, use: str | None = None) -> NDArray: ...
    @property
    def kept(self) -> int: ...
    @property
    def kept_padding(self) -> int: ...
    @property
    def row_padding(self) -> int: ...
    def pack(self, weights: _Weights, threads: int, backward: bool = False) -> Packed: ...
    def run_forward(
        self,
        batch: Batch,
        packed: Packed,
        x: NDArray,
        y: NDArray,
        states: _States,
        new_states: _States,
        threads: int,
        kept: NDArray | None = None,
        x_copy: NDArray | None = None,
        y_copy: NDArray | None = None,
        in_window: bool = False,
    ) -> None: ...
    def sizes(self, batch: Batch, threads: int) -> tuple[tuple[int, int], tuple[int, int]]: ...
    def chunk_begin(self, batch: Batch, end: int) -> int: ...
    def run_jvp(
        self,
        batch: Batch,
        packed: Packed,
        record: _Record,
        dx: NDArray | None,
        dstates: tuple[NDArray | None, ...] | None,
        dy: NDArray,
        new_dstates: _States,
        threads: int,
    ) -> None: ...
    def run_backward(
        self,
        batch: Batch,
        packed: Packed,
        record: _Record,
        dy: NDArray | None,
        dstates: tuple[NDArray | None, ...] | None,
        dx: NDArray | None,
        initial: _States,
        gradients: _Weights | None,
        threads: int,
        add: bool = False,
        clip_step: float = 0,
    ) -> None: ...
