/* Copies: from the device always, to it only small ones, so that token ids arrive and no page is committed.
 *
 * Whatever depends on data sees zeros. One rule helps code that branches on masks: a single byte that is read
 * back is 1 (a comparison held, `all()` was true), unless the last kernel was the reduction of `any()`:
 * then 0. A mask that is read back whole holds everywhere. */
#include "nullgpu.h"

static int made_a_mask(const char *kernel) {
    static const char *const makers[] = {"UlbE_", "CompareFunctor", "CompareEqFunctor",
                                         "compare_scalar_kernel"};
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++)
        if (strstr(kernel, makers[i])) return 1;
    return 0;
}

void copy(void *to, const void *from, size_t bytes) {
    if (!bytes) return;
    if (on_device(to)) {
        if (bytes <= card()->copy_limit) memcpy(to, from, bytes);
        return;
    }
    memcpy(to, from, bytes);
    if (!on_device(from)) return;
    if (bytes == 1)
        *(char *)to = !strstr(last_kernel, "or_kernel");
    else if (made_a_mask(last_kernel))
        memset(to, 1, bytes);
    last_kernel = ""; /* what is read next was not made by it */
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    copy(to, from, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t s) {
    TRACE(2, "cudaMemcpyAsync %zu kind %d\n", bytes, kind);
    copy(to, from, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int there, const void *from, int here, size_t bytes,
                                       cudaStream_t s) {
    copy(to, from, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                     size_t width, size_t rows, enum cudaMemcpyKind kind, cudaStream_t s) {
    if (width * rows > card()->copy_limit && on_device(to)) return cudaSuccess;
    for (size_t row = 0; row < rows; row++)
        copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s) {
    TRACE(2, "cudaMemsetAsync %d %zu\n", value, bytes);
    if (!on_device(to) || bytes <= card()->copy_limit) memset(to, value, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, NULL);
}

/* Variables of device code have no memory of their own here. */
EXPORT cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t offset,
                                      enum cudaMemcpyKind kind) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *from, size_t n, size_t offset,
                                           enum cudaMemcpyKind kind, cudaStream_t s) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void **out, const void *symbol) {
    *out = (void *)symbol;
    return cudaSuccess;
}
