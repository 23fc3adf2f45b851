/* The driver's interface, as far as PyTorch (expandable segments), NVRTC and Triton call it. */
#include "nullgpu.h"
#include <dlfcn.h>
#include <sys/mman.h>

/* ---- how its functions are found */

static void *entry_point(const char *name) {
    static void *self;
    Dl_info info;
    if (!self) {
        dladdr((void *)entry_point, &info);
        self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }
    for (int version = 3; version >= 1; version--) {
        char versioned[128];
        snprintf(versioned, sizeof versioned, version == 1 ? "%s" : "%s_v%d", name, version);
        void *found = dlsym(self, versioned);
        if (found && dladdr(found, &info) && strstr(info.dli_fname, "nullgpu")) return found;
    }
    return NULL;
}

/* A program may look for more than it calls, so what is not there ends the program only when it is called.
 * Its name is kept for one of 64 stand-ins, each of which knows its number. */
#define STAND_INS 64
static char absent[STAND_INS][64];
static int num_absent;
#define ONE(number)                                                                                          \
    static CUresult stand_in_##number(void) { missing(absent[0##number]); }
#define NAME(number) stand_in_##number,
#define EIGHT(DO, tens)                                                                                      \
    DO(tens##0) DO(tens##1) DO(tens##2) DO(tens##3) DO(tens##4) DO(tens##5) DO(tens##6) DO(tens##7)
#define ALL(DO)                                                                                              \
    EIGHT(DO, 0) EIGHT(DO, 1) EIGHT(DO, 2) EIGHT(DO, 3) EIGHT(DO, 4) EIGHT(DO, 5) EIGHT(DO, 6) EIGHT(DO, 7)
ALL(ONE)
static CUresult (*const stand_ins[STAND_INS])(void) = {ALL(NAME)};

static void *stand_in_for(const char *name) {
    TRACE(1, "driver entry point %s is not there\n", name);
    int at = 0;
    while (at < num_absent && strcmp(absent[at], name)) at++;
    if (at == STAND_INS) at = STAND_INS - 1, name = "a function of the driver";
    if (at == num_absent) num_absent++;
    snprintf(absent[at], sizeof absent[at], "%s", name);
    return (void *)stand_ins[at];
}

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *status) {
    *out = entry_point(name);
    if (!*out) *out = stand_in_for(name);
    if (status) *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char *name, void **out, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult *status) {
    return cudaGetDriverEntryPointByVersion(name, out, CUDART_VERSION, flags, status);
}
#undef cuGetProcAddress
EXPORT CUresult cuGetProcAddress_v2(const char *name, void **out, int version, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status) {
    *out = entry_point(name);
    if (status) *status = *out ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* ---- devices and contexts: a context is the number of its device, from 1 */

EXPORT CUresult cuInit(unsigned flags) { return visible_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }

/* NVRTC, which compiles some of torch's kernels (exp2), looks for unpublished functions: it is given a table
 * that ends before the first. */
EXPORT CUresult cuGetExportTable(const void **table, const CUuuid *id) {
    static const size_t empty[1] = {sizeof(size_t)};
    *table = empty;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int *count) {
    *count = visible_count();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice *device, int number) {
    *device = number;
    return number < visible_count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    snprintf(name, length, "%s", card()->name);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    *value = device_attribute((int)which, device);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    *bytes = card()->memory_bytes;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext *out) {
    *out = (CUcontext)(size_t)(current_device + 1);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) current_device = (int)(size_t)context - 1;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) { return cuCtxSetCurrent(context); }
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *out) { return out ? cuCtxGetCurrent(out) : CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetLimit(CUlimit which, size_t value) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(size_t *value, CUlimit which) {
    *value = 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize(void) { return CUDA_SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0, *active = has_context(device);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device) {
    open_context(device);
    *out = (CUcontext)(size_t)(device + 1);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return CUDA_SUCCESS; }
EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
            : error                           ? "error of the null GPU"
                                              : "no error";
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }

/* The driver's log, which torch 2.15 listens to; no line is ever written. Not in the headers of CUDA 12. */
EXPORT CUresult nullgpu_logs_register(void *call, void *data, void **out) __asm__("cuLogsRegisterCallback");
CUresult nullgpu_logs_register(void *call, void *data, void **out) CREATES(void *)
EXPORT CUresult nullgpu_logs_unregister(void *handle) __asm__("cuLogsUnregisterCallback");
CUresult nullgpu_logs_unregister(void *handle) {
    free(handle);
    return CUDA_SUCCESS;
}

/* ---- pointers */

EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute which, CUdeviceptr pointer) {
    int is_device = on_device((void *)pointer);
    switch (which) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = current_device; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)data = pointer; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = is_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        break;
    default: *(size_t *)data = 0;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *which, void **data,
                                       CUdeviceptr pointer) {
    for (unsigned i = 0; i < count; i++) cuPointerGetAttribute(data[i], which[i], pointer);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
    struct range range;
    if (!find_range((void *)pointer, &range)) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = (CUdeviceptr)range.begin;
    if (bytes) *bytes = range.bytes;
    return CUDA_SUCCESS;
}

/* ---- virtual memory: addresses are reserved, memory of the card is charged, mapping makes them readable */

struct physical {
    size_t bytes;
    int device;
};
EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *p,
                                              CUmemAllocationGranularity_flags flags) {
    *bytes = PAGE;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAddressReserve(CUdeviceptr *out, size_t bytes, size_t alignment, CUdeviceptr at,
                                    unsigned long long flags) {
    *out = (CUdeviceptr)take_addresses(bytes, 0, RESERVED, current_device);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
    return give_addresses((void *)pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *p,
                            unsigned long long flags) {
    if (!charge(p->location.id, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    struct physical *made = new_handle();
    made->bytes = bytes, made->device = p->location.id;
    *out = (CUmemGenericAllocationHandle)made;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    struct physical *made = (struct physical *)handle;
    discharge(made->device, made->bytes);
    free(made);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags) {
    return mprotect((void *)p, bytes, PROT_READ | PROT_WRITE) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
EXPORT CUresult cuMemUnmap(CUdeviceptr p, size_t bytes) {
    madvise((void *)p, bytes, MADV_DONTNEED);
    mprotect((void *)p, bytes, PROT_NONE);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *access, size_t count) {
    return CUDA_SUCCESS;
}

/* ---- modules that NVRTC and Triton compile; a function is its name */

EXPORT CUresult cuModuleLoad(CUmodule *out, const char *file) CREATES(CUmodule)
EXPORT CUresult cuModuleLoadData(CUmodule *out, const void *image) CREATES(CUmodule)
EXPORT CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned count, CUjit_option *options,
                                   void **values) CREATES(CUmodule)
EXPORT CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
EXPORT CUresult cuModuleGetFunction(CUfunction *out, CUmodule module, const char *name) {
    *out = new_handle();
    snprintf((char *)*out, 255, "%s", name);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
    if (which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) *value = 1024;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

static CUresult launch(CUfunction function) {
    TRACE(1, "kernel %s\n", (char *)function);
    last_kernel = "?";
    return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                               CUstream s, void **arguments, void **extra) {
    return launch(function);
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments,
                                 void **extra) {
    return launch(function);
}
EXPORT CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                          unsigned grid_z, unsigned block_x, unsigned block_y,
                                          unsigned block_z, unsigned shared, CUstream s, void **arguments) {
    return launch(function);
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size,
                                                            size_t shared) {
    *blocks = 1;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function,
                                             const CUlaunchConfig *config) {
    *clusters = 1;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                       void *address, const cuuint64_t *dims, const cuuint64_t *strides,
                                       const cuuint32_t *box, const cuuint32_t *element_strides,
                                       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    return CUDA_SUCCESS;
}
