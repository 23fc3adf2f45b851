/* NCCL: messages of up to 64 KiB a rank are exchanged through shared memory, so that what ranks tell each
 * other (shapes, objects, norms) arrives; larger ones, sends, receives and all-to-all do nothing. With
 * NULLGPU_ALONE=1 a process is one rank without the others, which are taken to say what it says. */
#include "nullgpu.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SMALL_MESSAGE ((size_t)64 << 10)
#define MAX_RANKS 16
#define PATIENCE_SPINS 120000 /* two minutes */

/* ncclDataType_t and ncclRedOp_t */
enum type { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64 };
enum operation { SUM, PRODUCT, MAXIMUM, MINIMUM, AVERAGE };
static const size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

struct meeting { /* in shared memory, one a communicator */
    int arrived, left, generation;
    char data[MAX_RANKS][SMALL_MESSAGE];
};
struct comm {
    int rank, ranks, splits;
    struct meeting *meeting;
    char name[96];
};

static void path_of(char *path, size_t length, const char *name) {
    snprintf(path, length, "/dev/shm/nullgpu-nccl-%s", name);
}

static struct meeting *meeting_of(const char *name) {
    char path[160];
    path_of(path, sizeof path, name);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void *map = MAP_FAILED;
    if (file >= 0 && ftruncate(file, sizeof(struct meeting)) == 0)
        map = mmap(NULL, sizeof(struct meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    return map == MAP_FAILED ? NULL : map;
}

static int is_alone(void) {
    const char *value = getenv("NULLGPU_ALONE");
    return value && atoi(value);
}

static void wait_for_all(struct comm *c, int *count) { /* a barrier: the last one in opens it */
    if (is_alone()) return;
    struct meeting *m = c->meeting;
    int generation = __atomic_load_n(&m->generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(count, 1, __ATOMIC_ACQ_REL) == c->ranks) {
        __atomic_store_n(count, 0, __ATOMIC_RELEASE);
        __atomic_add_fetch(&m->generation, 1, __ATOMIC_ACQ_REL);
        return;
    }
    for (long spins = 0; __atomic_load_n(&m->generation, __ATOMIC_ACQUIRE) == generation; spins++) {
        if (spins > 200) usleep(spins > 5000 ? 1000 : 50);
        if (spins > PATIENCE_SPINS)
            stop("a rank waited two minutes for the others", "see which of them ended");
    }
}

static int is_exchanged(struct comm *c, size_t bytes) {
    return c->meeting && c->ranks <= MAX_RANKS && bytes && bytes <= SMALL_MESSAGE;
}
static void share(struct comm *c, const void *mine, size_t bytes) {
    for (int rank = 0; mine && rank < c->ranks; rank++)
        if (rank == c->rank || is_alone()) memcpy(c->meeting->data[rank], mine, bytes);
    wait_for_all(c, &c->meeting->arrived);
}
static void part(struct comm *c) { wait_for_all(c, &c->meeting->left); }

static double number(const char *at, int type) {
    switch (type) {
    case INT8: return *(int8_t *)at;
    case UINT8: return *(uint8_t *)at;
    case INT32: return *(int32_t *)at;
    case UINT32: return *(uint32_t *)at;
    case INT64: return (double)*(int64_t *)at;
    case UINT64: return (double)*(uint64_t *)at;
    case FLOAT32: return *(float *)at;
    default: return *(double *)at;
    }
}
static void put(char *at, int type, double value) {
    switch (type) {
    case INT8: *(int8_t *)at = (int8_t)value; break;
    case UINT8: *(uint8_t *)at = (uint8_t)value; break;
    case INT32: *(int32_t *)at = (int32_t)value; break;
    case UINT32: *(uint32_t *)at = (uint32_t)value; break;
    case INT64: *(int64_t *)at = (int64_t)value; break;
    case UINT64: *(uint64_t *)at = (uint64_t)value; break;
    case FLOAT32: *(float *)at = (float)value; break;
    default: *(double *)at = value;
    }
}
static double combined(double a, double b, int operation) {
    switch (operation) {
    case PRODUCT: return a * b;
    case MAXIMUM: return a > b ? a : b;
    case MINIMUM: return a < b ? a : b;
    default: return a + b;
    }
}

/* Floats of 16 and 8 bits are not added: each rank keeps its own. */
static void reduce(struct comm *c, char *to, size_t from, size_t count, int type, int operation) {
    size_t size = SIZES[type];
    if (type == FLOAT16 || type > FLOAT64) {
        memcpy(to, c->meeting->data[c->rank] + from, count * size);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        double total = number(c->meeting->data[0] + from + i * size, type);
        for (int rank = 1; rank < c->ranks; rank++)
            total = combined(total, number(c->meeting->data[rank] + from + i * size, type), operation);
        put(to + i * size, type, operation == AVERAGE ? total / c->ranks : total);
    }
}

/* ---- communicators */

struct unique_id {
    char bytes[128];
};
EXPORT int ncclGetUniqueId(struct unique_id *id) {
    static int made;
    memset(id, 0, sizeof *id);
    int number = __atomic_add_fetch(&made, 1, __ATOMIC_RELAXED);
    snprintf(id->bytes, 64, "%d-%d-%lx", getpid(), number, (long)time(NULL));
    return 0;
}

static int join(struct comm **out, int ranks, const char *name, int rank) {
    struct comm *c = calloc(1, sizeof *c);
    c->rank = rank, c->ranks = ranks;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->meeting = ranks > 1 ? meeting_of(name) : NULL;
    *out = c;
    TRACE(1, "ncclCommInit %s rank %d of %d\n", name, rank, ranks);
    return 0;
}
EXPORT int ncclCommInitRank(struct comm **out, int ranks, struct unique_id id, int rank) {
    return join(out, ranks, id.bytes, rank);
}
EXPORT int ncclCommInitRankConfig(struct comm **out, int ranks, struct unique_id id, int rank, void *config) {
    return join(out, ranks, id.bytes, rank);
}
EXPORT int ncclCommInitRankScalable(struct comm **out, int ranks, int rank, int ids, struct unique_id *id,
                                    void *config) {
    return join(out, ranks, id->bytes, rank);
}
EXPORT int ncclCommSplit(struct comm *c, int color, int key, struct comm **out, void *config) {
    int split = ++c->splits; /* alike on all ranks, also on those that take no part in what is made */
    int mine[2] = {color, key}, ranks = 1, rank = 0;
    if (c->meeting) {
        share(c, mine, sizeof mine);
        ranks = 0;
        for (int r = 0; r < c->ranks; r++) {
            int *theirs = (int *)c->meeting->data[r];
            if (theirs[0] != color) continue;
            ranks++;
            rank += theirs[1] < key || (theirs[1] == key && r < c->rank);
        }
        part(c);
    }
    if (color < 0) {
        *out = NULL;
        return 0;
    }
    char name[96];
    snprintf(name, sizeof name, "%.50s.%d.%d", c->name, split, color);
    return join(out, ranks, name, rank);
}
EXPORT int ncclCommFinalize(struct comm *c) { return 0; }
EXPORT int ncclCommDestroy(struct comm *c) {
    char path[160];
    if (!c || c->rank) return 0;
    path_of(path, sizeof path, c->name);
    unlink(path);
    return 0;
}
EXPORT int ncclCommAbort(struct comm *c) { return ncclCommDestroy(c); }
EXPORT int ncclCommCount(struct comm *c, int *count) {
    *count = c->ranks;
    return 0;
}
EXPORT int ncclCommUserRank(struct comm *c, int *rank) {
    *rank = c->rank;
    return 0;
}
EXPORT int ncclCommGetAsyncError(struct comm *c, int *error) {
    *error = 0;
    return 0;
}
EXPORT const char *ncclGetErrorString(int error) { return error ? "error of the null GPU" : "no error"; }
EXPORT const char *ncclGetLastError(struct comm *c) { return ""; }
EXPORT int ncclGroupStart(void) { return 0; }
EXPORT int ncclGroupEnd(void) { return 0; }
EXPORT int ncclCommRegister(struct comm *c, void *pointer, size_t n, void **handle) {
    *handle = c;
    return 0;
}
EXPORT int ncclCommDeregister(struct comm *c, void *handle) { return 0; }
EXPORT int ncclMemAlloc(void **out, size_t n) { return cudaMalloc(out, n); }
EXPORT int ncclMemFree(void *pointer) { return cudaFree(pointer); }
EXPORT int ncclRedOpCreatePreMulSum(int *op, void *scalar, int type, int residence, struct comm *c) {
    *op = AVERAGE; /* what FSDP multiplies by is 1 / ranks */
    return 0;
}
EXPORT int ncclRedOpDestroy(int op, struct comm *c) { return 0; }

/* ---- collectives */

EXPORT int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, struct comm *c,
                         cudaStream_t s) {
    size_t bytes = n * SIZES[type];
    TRACE(1, "ncclAllReduce %zu\n", bytes);
    if (is_exchanged(c, bytes)) {
        share(c, from, bytes);
        reduce(c, to, 0, n, type, op);
        part(c);
    } else if (from != to)
        copy(to, from, bytes);
    return 0;
}
EXPORT int ncclReduce(const void *from, void *to, size_t n, int type, int op, int root, struct comm *c,
                      cudaStream_t s) {
    return ncclAllReduce(from, c->rank == root ? to : (void *)from, n, type, op, c, s);
}
EXPORT int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, struct comm *c,
                         cudaStream_t s) {
    size_t bytes = n * SIZES[type];
    TRACE(1, "ncclBroadcast %zu\n", bytes);
    if (is_exchanged(c, bytes)) {
        share(c, c->rank == root || is_alone() ? from : NULL, bytes);
        memcpy(to, c->meeting->data[root], bytes);
        part(c);
    } else if (from && from != to)
        copy(to, from, bytes);
    return 0;
}
EXPORT int ncclBcast(void *pointer, size_t n, int type, int root, struct comm *c, cudaStream_t s) {
    return ncclBroadcast(pointer, pointer, n, type, root, c, s);
}
EXPORT int ncclAllGather(const void *from, void *to, size_t n, int type, struct comm *c, cudaStream_t s) {
    size_t bytes = n * SIZES[type];
    TRACE(1, "ncclAllGather %zu\n", bytes);
    if (!is_exchanged(c, bytes)) return 0;
    share(c, from, bytes);
    for (int rank = 0; rank < c->ranks; rank++)
        memcpy((char *)to + rank * bytes, c->meeting->data[rank], bytes);
    part(c);
    return 0;
}
EXPORT int ncclReduceScatter(const void *from, void *to, size_t n, int type, int op, struct comm *c,
                             cudaStream_t s) {
    size_t bytes = n * SIZES[type];
    TRACE(1, "ncclReduceScatter %zu\n", bytes);
    if (!is_exchanged(c, bytes * c->ranks)) return 0;
    share(c, from, bytes * c->ranks);
    reduce(c, to, c->rank * bytes, n, type, op);
    part(c);
    return 0;
}
EXPORT int ncclAlltoAll(const void *from, void *to, size_t n, int type, struct comm *c, cudaStream_t s) {
    return 0;
}
EXPORT int ncclSend(const void *from, size_t n, int type, int peer, struct comm *c, cudaStream_t s) {
    return 0;
}
EXPORT int ncclRecv(void *to, size_t n, int type, int peer, struct comm *c, cudaStream_t s) { return 0; }
