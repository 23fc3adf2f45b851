/* cuBLAS and cuBLASLt: handles with their modes, products that do nothing, one algorithm without workspace.
 *
 * PyTorch brings the workspaces of cuBLAS itself, out of its allocator. Statuses and enums are int. */
#include "nullgpu.h"

#define CALL(name)                                                                                           \
    EXPORT int name(void) {                                                                                  \
        TRACE(1, "%s\n", #name);                                                                             \
        return 0;                                                                                            \
    }

struct blas {
    cudaStream_t stream;
    int math, pointer_mode;
};
EXPORT int cublasCreate_v2(void **out) CREATES(void *)
EXPORT int cublasDestroy_v2(void *handle) {
    free(handle);
    return 0;
}
EXPORT int cublasSetStream_v2(struct blas *handle, cudaStream_t s) {
    handle->stream = s;
    return 0;
}
EXPORT int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    TRACE(1, "cublasSetWorkspace %zu\n", bytes);
    return 0;
}
EXPORT int cublasSetMathMode(struct blas *handle, int mode) {
    handle->math = mode;
    return 0;
}
EXPORT int cublasGetMathMode(struct blas *handle, int *mode) {
    *mode = handle->math;
    return 0;
}
EXPORT int cublasSetPointerMode_v2(struct blas *handle, int mode) {
    handle->pointer_mode = mode;
    return 0;
}
EXPORT int cublasGetPointerMode_v2(struct blas *handle, int *mode) {
    *mode = handle->pointer_mode;
    return 0;
}
EXPORT int cublasSetSmCountTarget(void *handle, int count) { return 0; }
EXPORT const char *cublasGetStatusString(int status) { return status ? "error of the null GPU" : "success"; }

/* clang-format off */
CALL(cublasGemmEx) CALL(cublasGemmStridedBatchedEx) CALL(cublasGemmBatchedEx) CALL(cublasSgemmEx)
CALL(cublasSgemm_v2) CALL(cublasDgemm_v2) CALL(cublasCgemm_v2) CALL(cublasZgemm_v2)
CALL(cublasSgemmStridedBatched) CALL(cublasDgemmStridedBatched)
CALL(cublasCgemmStridedBatched) CALL(cublasZgemmStridedBatched)
CALL(cublasSgemv_v2) CALL(cublasDgemv_v2) CALL(cublasCgemv_v2) CALL(cublasZgemv_v2)
CALL(cublasSdot_v2) CALL(cublasDdot_v2) CALL(cublasDotEx) CALL(cublasStrsm_v2) CALL(cublasDtrsm_v2)
CALL(cublasStrsmBatched) CALL(cublasDtrsmBatched)
/* clang-format on */

EXPORT size_t cublasLtGetVersion(void) { return 130101; }
EXPORT int cublasLtCreate(void **out) CREATES(void *)
EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int type) CREATES(void *)
EXPORT int cublasLtMatmulDescDestroy(void *descriptor) {
    free(descriptor);
    return 0;
}
EXPORT int cublasLtMatmulDescSetAttribute(void *descriptor, int which, const void *value, size_t n) {
    return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t columns, int64_t leading)
    CREATES(void *)
EXPORT int cublasLtMatrixLayoutDestroy(void *layout) {
    free(layout);
    return 0;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(void *layout, int which, const void *value, size_t n) {
    return 0;
}
EXPORT int cublasLtMatmulPreferenceCreate(void **out) CREATES(void *)
EXPORT int cublasLtMatmulPreferenceDestroy(void *preference) {
    free(preference);
    return 0;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void *preference, int which, const void *value, size_t n) {
    return 0;
}

struct heuristic { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                          void *preference, int asked, struct heuristic *out, int *found) {
    memset(out, 0, sizeof *out);
    *found = 1;
    return 0;
}
CALL(cublasLtMatmul)
