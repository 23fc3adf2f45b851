/* What the devices say of themselves: properties, attributes, versions. */
#include "nullgpu.h"
#include <dlfcn.h>

#define CLOCK_KHZ 1500000
#define MEMORY_CLOCK_KHZ 5000000
#define REGISTERS 65536

void card_uuid(char *sixteen_bytes, int number) {
    memset(sixteen_bytes, 0, 16);
    memcpy(sixteen_bytes, "nullgpu", 7);
    sixteen_bytes[15] = (char)number;
}

void card_uuid_text(char *text, size_t length, int number) {
    char bytes[16], hex[33];
    card_uuid(bytes, number);
    for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", (unsigned char)bytes[i]);
    snprintf(text, length, "GPU-%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = visible_count();
    return *count ? cudaSuccess : fail(cudaErrorNoDevice);
}

EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return visible_count() ? cudaSuccess : fail(cudaErrorNoDevice);
}

EXPORT cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= visible_count()) return fail(cudaErrorInvalidDevice);
    current_device = device;
    open_context(device);
    return cudaSuccess;
}

/* The structure of CUDA 12, which asks for it by another name (its header makes cudaGetDeviceProperties
 * cudaGetDeviceProperties_v2), so that one library serves both. From driver_types.h of CUDA 12. */
struct properties12 {
    char name[256];
    cudaUUID_t uuid;
    char luid[8];
    unsigned luidDeviceNodeMask;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize;
    size_t memPitch;
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate;
    size_t totalConstMem;
    int major, minor;
    size_t textureAlignment, texturePitchAlignment;
    int deviceOverlap, multiProcessorCount, kernelExecTimeoutEnabled, integrated, canMapHostMemory,
        computeMode;
    int maxTexture1D, maxTexture1DMipmap, maxTexture1DLinear, maxTexture2D[2], maxTexture2DMipmap[2];
    int maxTexture2DLinear[3], maxTexture2DGather[2], maxTexture3D[3], maxTexture3DAlt[3], maxTextureCubemap;
    int maxTexture1DLayered[2], maxTexture2DLayered[3], maxTextureCubemapLayered[2];
    int maxSurface1D, maxSurface2D[2], maxSurface3D[3], maxSurface1DLayered[2], maxSurface2DLayered[3];
    int maxSurfaceCubemap, maxSurfaceCubemapLayered[2];
    size_t surfaceAlignment;
    int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount;
    int unifiedAddressing, memoryClockRate, memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize;
    int maxThreadsPerMultiProcessor, streamPrioritiesSupported, globalL1CacheSupported, localL1CacheSupported;
    size_t sharedMemPerMultiprocessor;
    int regsPerMultiprocessor, managedMemory, isMultiGpuBoard, multiGpuBoardGroupID,
        hostNativeAtomicSupported;
    int singleToDoublePrecisionPerfRatio, pageableMemoryAccess, concurrentManagedAccess;
    int computePreemptionSupported, canUseHostPointerForRegisteredMem, cooperativeLaunch;
    int cooperativeMultiDeviceLaunch;
    size_t sharedMemPerBlockOptin;
    int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost, maxBlocksPerMultiProcessor;
    int accessPolicyMaxWindowSize;
    size_t reservedSharedMemPerBlock;
    int hostRegisterSupported, sparseCudaArraySupported, hostRegisterReadOnlySupported;
    int timelineSemaphoreInteropSupported, memoryPoolsSupported, gpuDirectRDMASupported;
    unsigned gpuDirectRDMAFlushWritesOptions;
    int gpuDirectRDMAWritesOrdering;
    unsigned memoryPoolSupportedHandleTypes;
    int deferredMappingCudaArraySupported, ipcEventSupported, clusterLaunch, unifiedFunctionPointers;
    int reserved2[2], reserved1[1], reserved[60];
};

/* Both structures have these fields under the same names; the others are 0. */
#define FILL(p, device)                                                                                      \
    do {                                                                                                     \
        memset(p, 0, sizeof *p);                                                                             \
        snprintf(p->name, sizeof p->name, "%s", card()->name);                                               \
        card_uuid(p->uuid.bytes, card_number(device));                                                       \
        p->totalGlobalMem = card()->memory_bytes;                                                            \
        p->sharedMemPerBlock = 48 << 10;                                                                     \
        p->sharedMemPerBlockOptin = card()->shared_per_block;                                                \
        p->sharedMemPerMultiprocessor = card()->shared_per_multiprocessor;                                   \
        p->reservedSharedMemPerBlock = card()->major >= 8 ? 1024 : 0;                                        \
        p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;                                              \
        p->warpSize = 32;                                                                                    \
        p->memPitch = 2147483647;                                                                            \
        p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;                            \
        p->maxThreadsDim[2] = 64;                                                                            \
        p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;                       \
        p->totalConstMem = 65536;                                                                            \
        p->major = card()->major, p->minor = card()->minor;                                                  \
        p->textureAlignment = 512, p->texturePitchAlignment = 32;                                            \
        p->multiProcessorCount = card()->multiprocessors;                                                    \
        p->maxThreadsPerMultiProcessor = card()->threads_per_multiprocessor;                                 \
        p->maxBlocksPerMultiProcessor = card()->threads_per_multiprocessor / 64;                             \
        p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;            \
        p->streamPrioritiesSupported = p->concurrentManagedAccess = p->cooperativeLaunch = 1;                \
        p->hostRegisterSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;                 \
        p->computePreemptionSupported = p->memoryPoolsSupported = 1;                                         \
        p->asyncEngineCount = 2, p->memoryBusWidth = 384, p->pciBusID = card_number(device) + 1;             \
        p->clusterLaunch = card()->major >= 9;                                                               \
    } while (0)

EXPORT cudaError_t nullgpu_properties(struct cudaDeviceProp *p,
                                      int device) __asm__("cudaGetDeviceProperties");
cudaError_t nullgpu_properties(struct cudaDeviceProp *p, int device) {
    if (device < 0 || device >= visible_count()) return fail(cudaErrorInvalidDevice);
    FILL(p, device);
    return cudaSuccess;
}

EXPORT cudaError_t nullgpu_properties12(struct properties12 *p,
                                        int device) __asm__("cudaGetDeviceProperties_v2");
cudaError_t nullgpu_properties12(struct properties12 *p, int device) {
    if (device < 0 || device >= visible_count()) return fail(cudaErrorInvalidDevice);
    FILL(p, device);
    p->clockRate = CLOCK_KHZ, p->memoryClockRate = MEMORY_CLOCK_KHZ;
    p->deviceOverlap = 1, p->singleToDoublePrecisionPerfRatio = 64;
    return cudaSuccess;
}

int device_attribute(int which, int device) {
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (int)card()->shared_per_block;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (int)card()->shared_per_multiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock: return card()->major >= 8 ? 1024 : 0;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return REGISTERS;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMultiProcessorCount: return card()->multiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return card()->threads_per_multiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return card()->threads_per_multiprocessor / 64;
    case cudaDevAttrComputeCapabilityMajor: return card()->major;
    case cudaDevAttrComputeCapabilityMinor: return card()->minor;
    case cudaDevAttrClockRate: return CLOCK_KHZ;
    case cudaDevAttrMemoryClockRate: return MEMORY_CLOCK_KHZ;
    case cudaDevAttrGlobalMemoryBusWidth: return 384;
    case cudaDevAttrPciBusId: return card_number(device) + 1;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrComputePreemptionSupported:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrMemoryPoolsSupported:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
    default: TRACE(2, "attribute %d is taken to be 0\n", which); return 0;
    }
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    if (device < 0 || device >= visible_count()) return fail(cudaErrorInvalidDevice);
    *value = device_attribute((int)which, device);
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = device != peer;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int device, unsigned flags) { return cudaSuccess; }

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *out, int length, int device) {
    snprintf(out, length, "0000:%02X:00.0", card_number(device) + 1);
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void) {
    open_context(current_device);
    return cudaSuccess;
}

/* The version is that of the runtime that the program came with; the driver is as new as the headers. */
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
    static const char *const names[] = {"libcudart.so.12", "libcudart.so.13"};
    for (int i = 0; i < 2; i++) {
        void *real = dlopen(names[i], RTLD_NOW | RTLD_NOLOAD);
        cudaError_t (*ask)(int *) =
            real ? (cudaError_t (*)(int *))dlsym(real, "cudaRuntimeGetVersion") : NULL;
        if (ask && ask != cudaRuntimeGetVersion) return ask(version);
    }
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT const char *cudaGetErrorName(cudaError_t error) {
    if (error == cudaErrorMemoryAllocation) return "cudaErrorMemoryAllocation";
    return error ? "cudaError" : "cudaSuccess";
}

EXPORT const char *cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorMemoryAllocation) return "out of memory";
    if (error == cudaErrorNoDevice) return "no CUDA-capable device is detected";
    if (error == cudaErrorInvalidDevice) return "invalid device ordinal";
    return error ? "error of the null GPU" : "no error";
}

EXPORT cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
