"""Memory that a layer uses again from call to call.

The first use of fresh memory is slow (the system finds and clears every page), and a training step needs as much of it
as its steps are long. So what a call no longer needs goes to a list, the shelf of its kernel (a stack has one for each
level), and the next call of about the same size, for the same use, takes it from there. An array over such memory lends
it for as long as anything refers to it. A shelf holds at most SHELF blocks and SHELF_BYTES; when there are more, the
oldest are freed.
"""
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdlib cimport free

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif

    /* On large pages, where the system has them, as many as are filled but for a third of the last one. */
    static void *allocate_block(size_t size) {
        const size_t page = (size_t)2 << 20, large = size / page * page + (size % page > page / 3 * 2 ? page : 0);
        void *data;
        if (posix_memalign(&data, large > 0 ? page : 64, large > size ? large : size) != 0) return NULL;
    #if defined(MADV_HUGEPAGE)
        if (large > 0) madvise(data, large, MADV_HUGEPAGE);
    #endif
        return data;
    }
    """
    void *allocate_block(size_t size) nogil

cdef enum:
    SHELF = 32  # blocks that a shelf holds: what two training steps need, as results of one may be held during the next
    SHELF_BYTES = 1 << 30  # and bytes; a larger block is freed at once
    SMALL = 32768  # bytes; below, what the system's allocator has at hand is as good


@cython.final
cdef class Block:
    """So many bytes, aligned to 64, for some use."""

    cdef void *data
    cdef size_t size
    cdef str use

    def __cinit__(self, size_t size, str use=None):
        self.size, self.use = size, use
        self.data = allocate_block(size)
        if self.data == NULL:
            raise MemoryError(f"no memory for {size} bytes")

    def __dealloc__(self):
        free(self.data)


# Nothing it refers to can refer back to it; and the collector would clear its attributes before __dealloc__ needs them.
@cython.final
@cython.no_gc
cdef class Loan:
    """A block until nothing refers to it any more; then, unless it is small or very large, it goes back to its
    shelf."""

    cdef Block block
    cdef list shelf

    def __dealloc__(self):
        if SMALL <= self.block.size <= SHELF_BYTES:
            self.shelf.append(self.block)
            free_oldest(self.shelf)


cdef free_oldest(list shelf):
    """Free what is on the shelf beyond its bounds, counted from the newest block on."""
    cdef size_t blocks = 0, size = 0
    cdef Block block
    for block in reversed(shelf):
        size += block.size
        if blocks == SHELF or size > SHELF_BYTES:
            del shelf[:len(shelf) - blocks]
            break
        blocks += 1


cdef Loan lend(Block block, list shelf):
    cdef Loan loan = Loan.__new__(Loan)
    loan.block, loan.shelf = block, shelf
    return loan


cdef Loan borrow(list shelf, size_t size, double slack=2, str use=None):
    """At least `size` bytes, and from the shelf at most `slack` times as many; ValueError if it is 0, for then it
    overflowed."""
    if size == 0:
        raise ValueError("sizes: the product of the dimensions overflows")
    cdef Block block
    if size >= SMALL:
        for block in reversed(shelf):
            if size <= block.size <= slack * size and block.use == use:
                try:
                    shelf.remove(block)
                except ValueError:  # another thread was faster
                    continue
                return lend(block, shelf)
    return lend(Block(size, use), shelf)


cdef borrowed_array(list shelf, tuple shape, cnp.dtype dtype, str use=None):
    """An uninitialised array, in memory from the shelf if it is large; as it may be kept, little of it lies idle."""
    cdef cnp.npy_intp dims[3]
    cdef int n = len(shape)
    size = dtype.itemsize
    for i in range(n):
        size *= shape[i]
    if n > 3:
        return np.empty(shape, dtype)
    if size > PY_SSIZE_T_MAX:
        raise MemoryError(f"no memory for {size} bytes")
    for i in range(n):
        dims[i] = shape[i]
    if size < SMALL:
        return cnp.PyArray_EMPTY(n, dims, dtype.type_num, False)
    cdef Loan loan = borrow(shelf, size, 1.25, use)
    array = cnp.PyArray_SimpleNewFromData(n, dims, dtype.type_num, loan.block.data)
    cnp.set_array_base(array, loan)
    return array
