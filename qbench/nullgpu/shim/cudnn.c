/* cuDNN's backend: one engine, which needs NULLGPU_CUDNN_WORKSPACE bytes. Statuses and enums are int. */
#include "nullgpu.h"

enum type { HANDLE = 0, BOOLEAN = 2, INT64 = 3, DOUBLE = 5, VOID_PTR = 6, DESCRIPTOR = 15, CHAR = 24 };
#define EXECUTION_PLAN_WORKSPACE_SIZE 402

EXPORT int cudnnCreate(void **out) CREATES(void *)
EXPORT int cudnnDestroy(void *handle) {
    free(handle);
    return 0;
}
EXPORT int cudnnSetStream(void *handle, cudaStream_t s) {
    *(cudaStream_t *)handle = s;
    return 0;
}
EXPORT int cudnnGetStream(void *handle, cudaStream_t *s) {
    *s = *(cudaStream_t *)handle;
    return 0;
}

EXPORT int cudnnBackendCreateDescriptor(int type, void **out) CREATES(void *)
EXPORT int cudnnBackendDestroyDescriptor(void *descriptor) {
    free(descriptor);
    return 0;
}
EXPORT int cudnnBackendSetAttribute(void *descriptor, int name, int type, int64_t count, const void *values) {
    return 0;
}
EXPORT int cudnnBackendFinalize(void *descriptor) { return 0; }
EXPORT int cudnnBackendExecute(void *handle, void *plan, void *pack) {
    TRACE(1, "cudnnBackendExecute\n");
    return 0;
}

static size_t size_of(int type) {
    if (type == HANDLE || type == INT64 || type == DOUBLE || type == VOID_PTR) return 8;
    return type == BOOLEAN || type == CHAR ? 1 : 4;
}

EXPORT int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t asked, int64_t *count,
                                    void *values) {
    TRACE(2, "cudnnBackendGetAttribute %d type %d asked %ld\n", name, type, (long)asked);
    int wants_value = values && asked && type != DESCRIPTOR; /* the caller brings descriptors to be filled */
    if (count) *count = wants_value || type == DESCRIPTOR;
    if (!wants_value) return 0;
    int64_t value = name == EXECUTION_PLAN_WORKSPACE_SIZE ? (int64_t)card()->cudnn_workspace : 0;
    memcpy(values, &value, size_of(type));
    return 0;
}
