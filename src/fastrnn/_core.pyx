# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The binding to the C library: pointers in, one call without the GIL, one status out.

Arrays that arrive here have been checked by the layers: they are C-contiguous, aligned, of the layer's dtype, and of
the shapes that fastrnn.h states. Only their sizes are looked at again, since a wrong one would be a crash.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

import os

cimport numpy as cnp
import numpy as np

cnp.import_array()

include "frnn.pxi"

cdef extern from *:
    """
    static const char build_version[] = FRNN_VERSION, build_compiler[] = FRNN_COMPILER;
    """
    const char *build_version
    const char *build_compiler

version = build_version.decode()
compiler = build_compiler.decode()


cdef const frnn_isa *chosen = NULL # until it is first asked for, or set


def isas():
    """The names of the instruction sets that this processor runs, best first."""
    names = []
    while frnn_isa_at(len(names)) != NULL:
        names.append(frnn_isa_name(frnn_isa_at(len(names))).decode())
    return tuple(names)


cdef const frnn_isa *isa_in_use() except NULL:
    """The one chosen; else that of FASTRNN_ISA, or ValueError; else the best."""
    if chosen == NULL:
        set_isa(os.environ.get("FASTRNN_ISA", "").strip().lower() or isas()[0], "FASTRNN_ISA")
    return chosen


def get_isa():
    """The name of the instruction set in use; ValueError if this processor does not run the one of FASTRNN_ISA."""
    return frnn_isa_name(isa_in_use()).decode()


def set_isa(name, what="instruction set"):
    """Use the instruction set of this name from the next call on; ValueError if this processor does not run it."""
    global chosen
    if name not in isas():
        raise ValueError(f"{what}: expected one of {', '.join(isas())} on this processor, got {name!r}")
    chosen = frnn_isa_at(isas().index(name))


def cells():
    """The names of the cells, by their number in the C table."""
    names = []
    while frnn_cell_name(len(names)) != NULL:
        names.append(frnn_cell_name(len(names)).decode())
    return tuple(names)


def processors():
    """How many processors this process may use: its affinity, and the quota of its control group."""
    return frnn_processors()


cdef frnn_dtype dtype_of(array) except *:
    if array.dtype == np.float32:
        return FRNN_F32
    if array.dtype == np.float64:
        return FRNN_F64
    raise TypeError(f"expected float32 or float64, got {array.dtype}")


cdef int should_stop(void *context) noexcept with gil:
    """Has Ctrl-C been pressed? The exception is put by, and raised once the call has returned."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<list>context).append(error)
        return 1
    return 0


cdef int check(frnn_status status, list interruption) except -1:
    if status == FRNN_OK:
        return 0
    if status == FRNN_STOPPED:
        raise interruption[0]
    raise ValueError("sizes: the product of the dimensions overflows")


include "memory.pxi"


cdef inline void *data_of(array, int64_t size, int itemsize) except? NULL:
    """The address of an array's elements, which must be `size` reals in C order; NULL for None."""
    if array is None:
        return NULL
    cdef cnp.ndarray a = array
    if cnp.PyArray_SIZE(a) != size or cnp.PyArray_ITEMSIZE(a) != itemsize or not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError(f"expected {size} contiguous reals of {itemsize} bytes, got {array.shape} {array.dtype}")
    return cnp.PyArray_DATA(a)


def empty(tuple shape, dtype):
    """An uninitialised array; one of 32 kB or more begins at a cache line, from where weights are packed faster."""
    return borrowed_array([], shape, dtype)


def uninitialised(tuple arrays):
    """New arrays of the same shapes and dtypes."""
    cdef cnp.ndarray a
    new = []
    for a in arrays:
        new.append(cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), False))
    return tuple(new)


def ready(array, dtype):
    """Whether the kernels can read an array of this dtype as it is: native, aligned, in C order."""
    return (type(array) is cnp.ndarray and cnp.PyArray_ISCARRAY_RO(array)
            and cnp.PyArray_TYPE(array) == (<cnp.dtype>dtype).type_num)


@cython.final
cdef class Batch:
    """The sequences of one call and where their rows lie: (T, B, .), (B, T, .) if batch_first, or, ragged, (N, .).

    lengths (int64, contiguous) are sorted here; None means that every sequence has T steps.
    """

    cdef frnn_batch batch
    cdef readonly object lengths
    cdef object order, starts
    cdef readonly Batch whole
    cdef readonly bint batch_first
    cdef readonly int64_t T, B, begin
    cdef int64_t rows

    def __cinit__(self, int64_t T, int64_t B, lengths=None, bint batch_first=False, bint ragged=False):
        self.batch = frnn_batch(T, B, NULL, NULL, 0, NULL)
        self.T, self.B, self.rows, self.begin = T, B, T * B, 0
        self.lengths, self.batch_first = lengths, batch_first
        if lengths is None:
            return
        self.batch.lengths = <const int64_t *>cnp.PyArray_DATA(lengths)
        self.order = np.argsort(-lengths, kind="stable").astype(np.int64, copy=False)
        self.batch.order = <const int64_t *>cnp.PyArray_DATA(self.order)
        if ragged:
            self.starts = np.zeros(B + 1, np.int64)
            np.cumsum(lengths, out=self.starts[1:])
            self.rows = self.starts[B]

    def window(self, int64_t begin, int64_t end):
        """Steps [begin, end) of the sequences, counted as each direction reads them. Arrays are those of the whole
        batch, but for what a call says is the window's own: (end - begin, B, .), in reading order."""
        cdef Batch window = Batch(end - begin, self.B, batch_first=self.batch_first)
        window.whole, window.begin, window.rows = self, begin, self.rows
        window.batch.begin, window.batch.whole = begin, &self.batch
        window.order, window.starts, window.batch.order = self.order, self.starts, self.batch.order
        if self.lengths is not None:
            window.lengths = np.clip(self.lengths - begin, 0, end - begin)
            window.batch.lengths = <const int64_t *>cnp.PyArray_DATA(window.lengths)
        return window

    @staticmethod
    def gathered(rows, int64_t total):
        """One step of len(rows) sequences: sequence b's row is number rows[b] (int64, contiguous) of the `total`
        rows that arrays have."""
        cdef Batch batch = Batch(1, len(rows))
        if len(rows) and not (0 <= rows.min() and rows.max() < total):
            raise ValueError(f"rows: expected numbers in 0..{total - 1}")
        batch.starts, batch.rows = rows, total
        return batch

    @property
    def ragged(self):
        return self.starts is not None

    @property
    def padded(self):
        """Whether arrays have rows that belong to no step."""
        return self.lengths is not None and self.starts is None

    cdef int rows_of(self, frnn_rows *rows, array, int64_t width, int itemsize, bint in_window=False) except -1:
        rows.data = data_of(array, (self.T * self.B if in_window else self.rows) * width, itemsize)
        rows.starts, rows.in_window = NULL, in_window
        if in_window:
            rows.time_step, rows.sequence_step = self.B * width, width
        elif self.starts is not None:
            rows.time_step, rows.sequence_step = width, 0
            rows.starts = <const int64_t *>cnp.PyArray_DATA(self.starts)
        elif self.batch_first:
            rows.time_step, rows.sequence_step = width, (self.T if self.whole is None else self.whole.T) * width
        else:
            rows.time_step, rows.sequence_step = self.B * width, width
        return 0


@cython.final
cdef class Packed:
    """The weights of one layer, packed for one pass on the instruction set in use when they were."""

    cdef const frnn_isa *isa
    cdef Loan memory


@cython.final
cdef class Kernel:
    """One layer's kernels: a cell, its dtype and its sizes; O is H unless the outputs are projected, and context
    (int64, contiguous) is for the cells that have one."""

    cdef frnn_layer layer
    cdef frnn_shape shape
    cdef object context
    cdef int itemsize
    cdef list shelf

    def __cinit__(self, str cell, dtype, int directions, int64_t I, int64_t H, int64_t O, context=None):
        number = cells().index(cell)
        self.layer = frnn_layer(number, FRNN_F32 if dtype == np.float32 else FRNN_F64, directions, I, H, O, NULL, 0)
        if context is not None:
            self.context = context
            self.layer.context, self.layer.contexts = <const int64_t *>cnp.PyArray_DATA(context), len(context)
        self.shape = frnn_layer_shape(&self.layer)
        self.itemsize, self.shelf = dtype.itemsize, []

    def empty(self, tuple shape, dtype, str use=None):
        """An uninitialised array, in memory that a later call for the same `use` takes again once nothing refers to it.
        Copies that may be written past the caches have uses of their own: to write through a cache to memory that is
        in none is slow."""
        return borrowed_array(self.shelf, shape, dtype, use)

    @property
    def kept(self):
        """Columns, each of H, of the record that training keeps of every step."""
        return self.shape.kept

    @property
    def kept_padding(self):
        """Reals between one of them and the next."""
        return self.shape.kept_step - self.layer.hidden_size

    @property
    def row_padding(self):
        """Reals at the end of a row of it: a cache line where else rows of 4 kB and more would lie whole kilobytes
        apart, and so those of a tile fall into few sets of a cache."""
        cdef int64_t size = self.layer.directions * self.shape.kept * self.shape.kept_step * self.itemsize
        return 64 // self.itemsize if size >= 4096 and size % 1024 == 0 else 0

    cdef int64_t kept_width(self):
        return self.layer.directions * self.shape.kept * self.shape.kept_step + self.row_padding

    cdef int weights_of(self, tuple arrays, frnn_weights *weights) except -1:
        """(W, R, b_ih, b_hh, P, p) of each direction, as arrays or None for what is not there."""
        cdef int64_t I = self.layer.input_size, H = self.layer.hidden_size, O = self.layer.output_size
        cdef int64_t rows = self.shape.gates * H
        for d in range(self.layer.directions):
            W, R, b_ih, b_hh, P, p = arrays[d]
            weights[d].W = data_of(W, rows * I * max(1, self.layer.contexts), self.itemsize)
            weights[d].R = data_of(R, rows * O, self.itemsize)
            weights[d].b_ih = data_of(b_ih, rows, self.itemsize)
            weights[d].b_hh = data_of(b_hh, rows, self.itemsize)
            weights[d].P = data_of(P, O * H, self.itemsize)
            weights[d].p = data_of(p, 3 * H, self.itemsize)
        return 0

    def pack(self, tuple weights, int threads, bint backward=False):
        """The weights, prepared for any number of forward or of backward calls."""
        cdef Packed packed = Packed()
        cdef frnn_pass which = FRNN_BACKWARD if backward else FRNN_FORWARD
        cdef frnn_weights pointers[2]
        cdef frnn_status status
        cdef list interruption = []
        cdef frnn_interrupt interrupt = frnn_interrupt(should_stop, <void *>interruption)
        self.weights_of(weights, pointers)
        packed.isa = isa_in_use()
        packed.memory = borrow(self.shelf, frnn_packed_size(packed.isa, &self.layer, which))
        cdef void *data = packed.memory.block.data
        with nogil:
            status = frnn_pack(packed.isa, threads, &self.layer, which, pointers, data, &interrupt)
        check(status, interruption)
        return packed

    cdef int states_of(self, Batch batch, tuple arrays, void **h, void **c) except -1:
        """The addresses of h (D, B, O) and c (D, B, H), those of them that the cell has; NULL if arrays is None."""
        cdef int64_t rows = self.layer.directions * batch.B
        h[0] = c[0] = NULL
        if arrays is None:
            return 0
        if self.shape.h:
            h[0] = data_of(arrays[0], rows * self.layer.output_size, self.itemsize)
        if self.shape.c:
            c[0] = data_of(arrays[self.shape.h], rows * self.layer.hidden_size, self.itemsize)
        return 0

    cdef Loan workspace(self, Packed packed, int threads, Batch batch, frnn_pass which):
        return borrow(self.shelf, frnn_workspace_size(packed.isa, threads, &self.layer, &batch.batch, which))

    def sizes(self, Batch batch, int threads):
        """Bytes of the packed weights and of the workspace, each (forward, backward)."""
        cdef const frnn_isa *isa = isa_in_use()
        return ((frnn_packed_size(isa, &self.layer, FRNN_FORWARD), frnn_packed_size(isa, &self.layer, FRNN_BACKWARD)),
                (frnn_workspace_size(isa, threads, &self.layer, &batch.batch, FRNN_FORWARD),
                 frnn_workspace_size(isa, threads, &self.layer, &batch.batch, FRNN_BACKWARD)))

    def chunk_begin(self, Batch batch, int64_t end):
        """Where backward's chunk begins that ends before step `end`, itself such a begin or T. Windows cut at these
        give the bits of one call."""
        return frnn_chunk_begin(&self.layer, &batch.batch, end)

    def run_forward(self, Batch batch, Packed packed, x, y, tuple states, tuple new_states, int threads, kept=None,
                    x_copy=None, y_copy=None, bint in_window=False):
        """Fill y (rows of D*O), the new states and what is kept (rows of kept_width; None: nothing) from x (rows
        of I) and the states: h (D, B, O), c (D, B, H); and the copies of x and y. in_window: y and kept are the
        window's own."""
        cdef frnn_forward_args args
        cdef frnn_rows copy
        cdef frnn_status status
        cdef Loan workspace
        cdef list interruption = []
        cdef int64_t I = self.layer.input_size, outputs = self.layer.directions * self.layer.output_size
        args.packed = packed.memory.block.data
        batch.rows_of(&args.x, x, I, self.itemsize)
        batch.rows_of(&args.y, y, outputs, self.itemsize, in_window)
        batch.rows_of(&args.kept, kept, self.kept_width(), self.itemsize, in_window)
        batch.rows_of(&copy, x_copy, I, self.itemsize)
        args.x_copy = copy.data
        batch.rows_of(&copy, y_copy, outputs, self.itemsize)
        args.y_copy = copy.data
        self.states_of(batch, states, <void **>&args.h0, <void **>&args.c0)
        self.states_of(batch, new_states, &args.hT, &args.cT)
        args.interrupt = frnn_interrupt(should_stop, <void *>interruption)
        workspace = self.workspace(packed, threads, batch, FRNN_FORWARD)
        args.workspace = workspace.block.data
        with nogil:
            status = frnn_forward(packed.isa, threads, &self.layer, &batch.batch, &args)
        check(status, interruption)

    cdef int record_of(self, Batch batch, record, frnn_record *out) except -1:
        """What forward read and wrote: (x, y, kept, states, in_window)."""
        x, y, kept, states, in_window = record
        cdef int64_t D = self.layer.directions
        batch.rows_of(&out.x, x, self.layer.input_size, self.itemsize)
        batch.rows_of(&out.y, y, D * self.layer.output_size, self.itemsize, in_window)
        batch.rows_of(&out.kept, kept, self.kept_width(), self.itemsize, in_window)
        self.states_of(batch, states, <void **>&out.h0, <void **>&out.c0)
        return 0

    def run_jvp(self, Batch batch, Packed packed, record, dx, tuple dstates, dy, tuple new_dstates, int threads):
        """Fill dy and the tangents of the new states from those of x and of the states (None, or any of the states
        None: zero), at what forward recorded; the weights are packed for forward."""
        cdef frnn_forward_args args
        cdef frnn_record at
        cdef frnn_status status
        cdef Loan workspace
        cdef list interruption = []
        self.record_of(batch, record, &at)
        args.packed = packed.memory.block.data
        batch.rows_of(&args.x, dx, self.layer.input_size, self.itemsize)
        batch.rows_of(&args.y, dy, self.layer.directions * self.layer.output_size, self.itemsize)
        args.kept.data = args.x_copy = args.y_copy = NULL
        self.states_of(batch, dstates, <void **>&args.h0, <void **>&args.c0)
        self.states_of(batch, new_dstates, &args.hT, &args.cT)
        args.interrupt = frnn_interrupt(should_stop, <void *>interruption)
        workspace = self.workspace(packed, threads, batch, FRNN_FORWARD)
        args.workspace = workspace.block.data
        with nogil:
            status = frnn_jvp(packed.isa, threads, &self.layer, &batch.batch, &at, &args)
        check(status, interruption)

    def run_backward(self, Batch batch, Packed packed, record, dy, dstates, dx, tuple initial, gradients,
                     int threads, bint add=False, double clip_step=0):
        """Fill dx, the gradients of the initial states and of the weights, at what forward recorded; dy and dstates
        (a tuple as states, or any of it) may be None: zero. dx is added to if D is 2, the gradients if `add`; of a
        recurrent layer each may be None: not wanted. initial may be dstates. A clip_step that is not 0 clips what
        passes from step to step."""
        cdef frnn_backward_args args
        cdef frnn_weights sums[2]
        cdef frnn_status status
        cdef Loan workspace
        cdef list interruption = []
        args.packed, args.gradients, args.add, args.clip_step = packed.memory.block.data, NULL, add, clip_step
        if gradients is not None:
            self.weights_of(gradients, sums)
            args.gradients = sums
        self.record_of(batch, record, &args.record)
        batch.rows_of(&args.dy, dy, self.layer.directions * self.layer.output_size, self.itemsize)
        batch.rows_of(&args.dx, dx, self.layer.input_size, self.itemsize)
        self.states_of(batch, dstates, <void **>&args.dhT, <void **>&args.dcT)
        self.states_of(batch, initial, &args.dh0, &args.dc0)
        args.interrupt = frnn_interrupt(should_stop, <void *>interruption)
        workspace = self.workspace(packed, threads, batch, FRNN_BACKWARD)
        args.workspace = workspace.block.data
        with nogil:
            status = frnn_backward(packed.isa, threads, &self.layer, &batch.batch, &args)
        check(status, interruption)


def evaluate(str function, x):
    """exp, tanh or logistic of a contiguous array of reals, as the kernels compute it."""
    cdef frnn_function which = {"exp": FRNN_EXP, "tanh": FRNN_TANH, "logistic": FRNN_LOGISTIC}[function]
    cdef frnn_dtype dtype = dtype_of(x)
    cdef int64_t n = x.size
    cdef frnn_status status
    cdef const frnn_isa *isa = isa_in_use()
    out = np.empty_like(x)
    cdef void *source = data_of(x, n, x.itemsize)
    cdef void *target = data_of(out, n, x.itemsize)
    with nogil:
        status = frnn_evaluate(isa, dtype, which, n, source, target)
    check(status, [])
    return out


def product(a, b):
    """a (M, K) times b (K, N), both contiguous and of one dtype, by the packing and the micro-kernel."""
    cdef int64_t M = a.shape[0], K = a.shape[1], N = b.shape[1]
    cdef frnn_dtype dtype = dtype_of(a)
    cdef frnn_status status
    cdef const frnn_isa *isa = isa_in_use()
    if b.dtype != a.dtype or b.shape[0] != K:
        raise ValueError(f"b: expected {K} rows of {a.dtype}, got {b.shape} {b.dtype}")
    cdef void *left = data_of(a, M * K, a.itemsize)
    cdef void *right = data_of(b, K * N, a.itemsize)
    out = np.empty((M, N), a.dtype)
    cdef void *target = data_of(out, M * N, a.itemsize)
    cdef Block workspace = Block(frnn_product_workspace(isa, dtype, K, N) + 64)
    with nogil:
        status = frnn_product(isa, dtype, M, K, N, left, right, target, workspace.data)
    check(status, [])
    return out


def fma_loop(dtype, int64_t rounds, int threads=1):
    """Turns of fused multiply-adds in registers alone; the number of floating-point operations done by all threads."""
    cdef frnn_dtype which = FRNN_F32 if np.dtype(dtype) == np.float32 else FRNN_F64
    cdef int64_t done
    cdef const frnn_isa *isa = isa_in_use()
    with nogil:
        done = frnn_fma_loop(isa, threads, which, rounds)
    return done


def read_loop(array, int64_t rounds, int threads=1):
    """Reads of a contiguous array, of which each thread has an equal part in whole multiples of 4096 bytes; the number
    of bytes read by all."""
    cdef cnp.ndarray a = array
    cdef int64_t size = a.nbytes, done
    cdef const frnn_isa *isa = isa_in_use()
    cdef void *data = cnp.PyArray_DATA(a)
    with nogil:
        done = frnn_read_loop(isa, threads, data, size, rounds)
    return done
