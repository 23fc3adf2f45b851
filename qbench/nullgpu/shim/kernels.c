/* Kernels are not run. Their names are kept: for the trace, and since a few decide what is read back next. */
#include "nullgpu.h"

__thread const char *last_kernel = "";

/* What a kernel does that the host waits for; found out at its first launch. */
enum role { UNKNOWN, PLAIN, COUNTS_PART, COUNTS_ALL, SUMS_UP };

struct kernel {
    const void *function; /* the host's stand-in for it */
    const char *name;
    enum role role;
};
static struct kernel *kernels; /* open addressing by function */
static size_t room, num_kernels;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct kernel *slot_of(const void *function) {
    size_t at = (((size_t)function >> 4) * 0x9E3779B97F4A7C15ull) & (room - 1);
    while (kernels[at].function && kernels[at].function != function) at = (at + 1) & (room - 1);
    return &kernels[at];
}

static void make_room(void) {
    struct kernel *old = kernels;
    size_t old_room = room;
    room = room ? room * 2 : 1 << 16;
    kernels = calloc(room, sizeof *kernels);
    for (size_t i = 0; i < old_room; i++)
        if (old[i].function) *slot_of(old[i].function) = old[i];
    free(old);
}

static void keep(const void *function, const char *name) {
    if (num_kernels * 2 >= room) make_room();
    struct kernel *slot = slot_of(function);
    num_kernels += !slot->function;
    *slot = (struct kernel){function, name, UNKNOWN};
}

static enum role role_of(const char *name) {
    int counts = strstr(name, "NonZeroOp") != NULL;
    if (strstr(name, "DeviceReduceSingleTileKernel")) return counts ? COUNTS_ALL : SUMS_UP;
    return counts && strstr(name, "DeviceReduceKernel") ? COUNTS_PART : PLAIN;
}

/* The one result that is made: `nonzero`, and so `x[mask]`, counts every element, as of a mask that is all
 * true. Nonzero.cu reads the count back to size its output; cub counts in one kernel or, of many, in two. */
static void count_elements(enum role role, void **arguments) {
    static __thread unsigned long long counted;
    if (role != SUMS_UP) counted = *(unsigned long long *)arguments[2];
    if (role == COUNTS_PART) return;
    if (counted) **(int **)arguments[1] = (int)counted;
    counted = 0;
}

static cudaError_t launch(const void *function, void **arguments) {
    struct kernel *kernel = room ? slot_of(function) : NULL;
    last_kernel = kernel && kernel->name ? kernel->name : "?";
    if (kernel && kernel->name) {
        if (kernel->role == UNKNOWN) kernel->role = role_of(kernel->name);
        if (kernel->role != PLAIN) count_elements(kernel->role, arguments);
    }
    TRACE(1, "kernel %s\n", last_kernel);
    return cudaSuccess;
}

/* ---- how a program makes its kernels known (nvcc writes these calls) */

EXPORT void **__cudaRegisterFatBinary(void *binary) { return new_handle(); }
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) {}
EXPORT void __cudaUnregisterFatBinary(void **handle) {}
EXPORT void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit,
                                   void *tid, void *bid, void *block, void *grid, int *size) {
    pthread_mutex_lock(&lock);
    keep(host, name);
    pthread_mutex_unlock(&lock);
}
EXPORT void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int is_extern,
                              size_t size, int is_constant, int is_global) {}
EXPORT char __cudaInitModule(void **handle) { return 1; }
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                            struct CUstream_st *stream) {
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0, *(void **)stream = NULL;
    return cudaSuccess;
}

/* ---- launches */

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                                      size_t shared, cudaStream_t s) {
    return launch(kernel, arguments);
}
EXPORT cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                    size_t shared, cudaStream_t s) {
    return launch(function, arguments);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function,
                                       void **arguments) {
    return launch(function, arguments);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                               size_t shared, cudaStream_t s) {
    return launch(function, arguments);
}

/* ---- what kernels say of themselves */

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *function) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024, out->numRegs = 32;
    /* What runs is the kernel of the next lower capability that the wheels are built for: 8.6 on 8.9,
     * 10.0 on 10.3, 12.0 on 12.1. cub refuses one that it was not built for. */
    int minor = card()->major > 8 ? 0 : card()->major == 8 && card()->minor > 6 ? 6 : card()->minor;
    out->binaryVersion = out->ptxVersion = card()->major * 10 + minor;
    out->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}

EXPORT cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute which, int value) {
    int is_shared = which == cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (is_shared && value > (int)card()->shared_per_block) return fail(cudaErrorInvalidValue);
    return cudaSuccess;
}
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute which,
                                                   int value, int device) {
    return cudaFuncSetAttribute(kernel, which, value);
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                          int block_size, size_t shared,
                                                                          unsigned flags) {
    *blocks = block_size > 0 ? card()->threads_per_multiprocessor / block_size : 1;
    if (*blocks < 1) *blocks = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                                 int block_size, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size, shared, 0);
}

EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *out, const void *code, enum cudaJitOption *jit,
                                       void **jit_values, unsigned num_jit, enum cudaLibraryOption *options,
                                       void **values, unsigned num_options) CREATES(cudaLibrary_t)
EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *out, cudaLibrary_t library, const char *name)
    CREATES(cudaKernel_t)
EXPORT cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return cudaSuccess; }
