/* Streams, events and graphs. All work is done when it is handed out, so nothing waits.
 *
 * Events hold the host's clock: the time between two is what the host took, never what a GPU would. */
#include "nullgpu.h"
#include <time.h>

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *out) CREATES(cudaStream_t)
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) CREATES(cudaStream_t)
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
    CREATES(cudaStream_t)
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
    *priority = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t call, void *data,
                                         unsigned flags) {
    call(s, cudaSuccess, data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) {
    call(data);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *out) CREATES(cudaEvent_t)
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) CREATES(cudaEvent_t)
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaSuccess; }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)e);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
    return cudaEventRecord(e, s);
}
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    const struct timespec *a = (struct timespec *)from, *b = (struct timespec *)to;
    *ms = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6);
    return cudaSuccess;
}

/* ---- capture: the program runs its step once while it captures, which is when it allocates */

static __thread cudaStream_t capturing;
static __thread int is_capturing;
static unsigned long long captures;

static enum cudaStreamCaptureStatus status_of(cudaStream_t s) {
    return is_capturing && s == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = status_of(s);
    return cudaSuccess;
}
EXPORT CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *status) {
    return (CUresult)cudaStreamIsCapturing(s, (enum cudaStreamCaptureStatus *)status);
}

/* CUDA 12 had a form without edges, _v2, and one with them, _v3, which CUDA 13 calls by the plain name. */
static cudaError_t capture_info(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *graph, const cudaGraphNode_t **nodes, const void **edges,
                                size_t *count) {
    *status = status_of(s);
    if (id) *id = captures;
    if (graph) *graph = NULL;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
#define CAPTURE_INFO(c_name, symbol)                                                                         \
    EXPORT cudaError_t c_name(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,  \
                              cudaGraph_t *graph, const cudaGraphNode_t **nodes, const void **edges,         \
                              size_t *count) __asm__(symbol);                                                \
    cudaError_t c_name(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,         \
                       cudaGraph_t *graph, const cudaGraphNode_t **nodes, const void **edges,                \
                       size_t *count) {                                                                      \
        return capture_info(s, status, id, graph, nodes, edges, count);                                      \
    }
CAPTURE_INFO(nullgpu_capture_info, "cudaStreamGetCaptureInfo")
CAPTURE_INFO(nullgpu_capture_info_v3, "cudaStreamGetCaptureInfo_v3")
EXPORT cudaError_t nullgpu_capture_info_v2(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                           unsigned long long *id, cudaGraph_t *graph,
                                           const cudaGraphNode_t **nodes,
                                           size_t *count) __asm__("cudaStreamGetCaptureInfo_v2");
cudaError_t nullgpu_capture_info_v2(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                    unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                    size_t *count) {
    return capture_info(s, status, id, graph, nodes, NULL, count);
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    capturing = s, is_capturing = 1, captures++;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) {
    is_capturing = 0;
    CREATES(cudaGraph_t)
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t g,
                                                 unsigned long long flags) CREATES(cudaGraphExec_t)
EXPORT cudaError_t nullgpu_instantiate(cudaGraphExec_t *out, cudaGraph_t g,
                                       unsigned long long flags) __asm__("cudaGraphInstantiate");
cudaError_t nullgpu_instantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags)
    CREATES(cudaGraphExec_t)
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
    *count = 1;
    if (nodes) nodes[0] = NULL;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t s) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return cudaSuccess; }
