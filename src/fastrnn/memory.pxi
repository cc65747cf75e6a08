"""Memory that a layer uses again from call to call.

The first use of fresh memory is slow (the system finds and clears every page), and a training step needs as much of it as
its steps are long. So what a call no longer needs goes to a list, the layer's shelf, and the next call of about the same
size takes it from there. An array over such memory lends it for as long as anything refers to it.
"""

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif

    /* On large pages, where the system has them and they pay. */
    static void *allocate_block(size_t size) {
        const size_t large = (size_t)2 << 20;
        const int is_large = size >= 2 * large;
        void *data;
        if (posix_memalign(&data, is_large ? large : 64, size) != 0) return NULL;
    #if defined(MADV_HUGEPAGE)
        if (is_large) madvise(data, size / large * large, MADV_HUGEPAGE);
    #endif
        return data;
    }
    """
    void *allocate_block(size_t size) nogil

cdef enum:
    SHELF = 16  # blocks that a shelf holds: what two training steps need, as results of one may be held during the next
    SMALL = 32768  # bytes; below, what the system's allocator has at hand is as good

MOST_BYTES = 2**62


@cython.final
@cython.no_gc
cdef class Block:
    """So many bytes, aligned to 64."""

    cdef void *data
    cdef size_t size

    def __cinit__(self, size_t size):
        self.size = size
        self.data = allocate_block(size)
        if self.data == NULL:
            raise MemoryError(f"no memory for {size} bytes")

    def __dealloc__(self):
        free(self.data)


@cython.final
@cython.no_gc
cdef class Loan:
    """A block until nothing refers to it any more; then a large one goes back to its shelf, where the oldest may have to go."""

    cdef Block block
    cdef list shelf

    def __dealloc__(self):
        if self.block.size < SMALL:
            return
        self.shelf.append(self.block)
        if len(self.shelf) > SHELF:
            self.shelf.pop(0)


cdef Loan lend(Block block, list shelf):
    cdef Loan loan = Loan.__new__(Loan)
    loan.block, loan.shelf = block, shelf
    return loan


cdef Loan borrow(list shelf, size):
    """At least `size` bytes; ValueError if it is 0, for then it overflowed."""
    if size == 0:
        raise ValueError("sizes: the product of the dimensions overflows")
    if size > MOST_BYTES:
        raise MemoryError(f"no memory for {size} bytes")
    cdef size_t least = size
    cdef Block block
    if least >= SMALL:
        for block in reversed(shelf):
            if least <= block.size and block.size // 2 <= least:
                try:
                    shelf.remove(block)
                except ValueError:  # another thread was faster
                    continue
                return lend(block, shelf)
    return lend(Block(least), shelf)


cdef borrowed_array(list shelf, tuple shape, cnp.dtype dtype):
    """An uninitialised array, in memory from the shelf if it is large."""
    cdef cnp.npy_intp dims[3]
    cdef int n = len(shape)
    size = dtype.itemsize
    for i in range(n):
        size *= shape[i]
    if size < SMALL or n > 3:
        return np.empty(shape, dtype)
    cdef Loan loan = borrow(shelf, size)
    for i in range(n):
        dims[i] = shape[i]
    array = cnp.PyArray_SimpleNewFromData(n, dims, dtype.type_num, loan.block.data)
    cnp.set_array_base(array, loan)
    return array
