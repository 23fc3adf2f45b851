/* NVML: memory, processes and names of the cards, which it counts whatever CUDA is shown.
 *
 * What a null GPU cannot say (power, clocks) is not exported, which the Python bindings answer with "function not
 * found". Statuses are nvmlReturn_t. */
#include "nullgpu.h"

#define NVML_SUCCESS 0
#define NVML_INVALID_ARGUMENT 2
#define NVML_NOT_SUPPORTED 3
#define NVML_NOT_FOUND 6
#define NVML_INSUFFICIENT_SIZE 7
#define NOT_IN_AN_INSTANCE (~0u)

typedef struct {
    unsigned long long total, free, used;
} memory_v1;
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;
typedef struct {
    unsigned pid;
    unsigned long long bytes;
} process_v1;
typedef struct {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
} process_v2;

static int number_of(void *handle) { return (int)(size_t)handle - 1; }
static void *handle_of(int number) { return (void *)(size_t)(number + 1); }

EXPORT int nvmlInit_v2(void) {
    card();
    return NVML_SUCCESS;
}
EXPORT int nvmlInit(void) { return nvmlInit_v2(); } /* by which torch counts devices */
EXPORT int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
EXPORT int nvmlShutdown(void) { return NVML_SUCCESS; }
EXPORT const char *nvmlErrorString(int result) { return "error of the null GPU"; }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = card()->count;
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **out) {
    if (number >= (unsigned)card()->count) return NVML_INVALID_ARGUMENT;
    *out = handle_of((int)number);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    card_uuid_text(text, length, number_of(handle));
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    for (int number = 0; number < card()->count; number++) {
        char text[64];
        card_uuid_text(text, sizeof text, number);
        if (strcmp(text, uuid)) continue;
        *out = handle_of(number);
        return NVML_SUCCESS;
    }
    return NVML_NOT_FOUND;
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **out) {
    unsigned domain, bus;
    int is_id = sscanf(id, "%x:%x", &domain, &bus) == 2;
    if (!is_id || bus < 1 || bus > (unsigned)card()->count) return NVML_NOT_FOUND;
    *out = handle_of((int)bus - 1);
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetIndex(void *handle, unsigned *index) {
    *index = number_of(handle);
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    snprintf(text, length, "%s", card()->name);
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    *major = card()->major, *minor = card()->minor;
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetNumGpuCores(void *handle, unsigned *cores) {
    *cores = card()->multiprocessors * 128;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *out) {
    size_t used = used_bytes(number_of(handle)), total = card()->memory_bytes;
    *out = (memory_v1){total, total - used, used};
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *out) {
    size_t used = used_bytes(number_of(handle)), total = card()->memory_bytes;
    out->total = total, out->reserved = 0, out->free = total - used, out->used = used;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_v2 *out) {
    struct process found[MAX_PROCESSES];
    unsigned room = *count;
    *count = processes_on(number_of(handle), found, MAX_PROCESSES);
    if (*count > room) return NVML_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        out[i] = (process_v2){found[i].pid, found[i].bytes, NOT_IN_AN_INSTANCE, NOT_IN_AN_INSTANCE};
    return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *count, process_v1 *out) {
    struct process found[MAX_PROCESSES];
    unsigned room = *count;
    *count = processes_on(number_of(handle), found, MAX_PROCESSES);
    if (*count > room) return NVML_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++) out[i] = (process_v1){found[i].pid, found[i].bytes};
    return NVML_SUCCESS;
}

/* PyTorch looks these up when it reports that memory ran out, and for expandable segments. Of the fabric the
 * caller's structure is left as it is, which says that there is none. */
EXPORT int nvmlDeviceGetGpuFabricInfoV(void *handle, void *info) { return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetMigMode(void) { return NVML_NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_NOT_SUPPORTED; }

/* The driver's version names the null GPU, so that whoever records it can tell. */
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "nullgpu");
    return NVML_SUCCESS;
}
EXPORT int nvmlSystemGetNVMLVersion(char *text, unsigned length) {
    return nvmlSystemGetDriverVersion(text, length);
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = CUDART_VERSION;
    return NVML_SUCCESS;
}
EXPORT int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }
