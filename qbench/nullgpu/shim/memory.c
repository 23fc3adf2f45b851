/* Device memory: addresses that are reserved on the host and never touched, bytes that are counted.
 *
 * An untouched page costs nothing and reads 0. cudaMalloc honours the card's size less the contexts and what
 * other processes hold, so that running out of memory, and trying again, are PyTorch's own. */
#include "nullgpu.h"
#include <sys/mman.h>

#define MOST_ADDRESSES ((size_t)32 << 40) /* of all devices together */
#define LEAST_ADDRESSES ((size_t)1 << 40)
#define ALIGNMENT (64 * MIB)
#define HOST_PAGE 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *arena, *arena_end, *arena_next;
static struct range *ranges; /* by address */
static size_t num_ranges, max_ranges;
static size_t used[MAX_DEVICES];
static int opened[MAX_DEVICES];
__thread int current_device;
static __thread cudaError_t last_error;

cudaError_t fail(cudaError_t error) { return last_error = error; }

/* ---- bytes */

static void account(int device) { publish(card_number(device), used[device] + card()->context_bytes); }

void open_context(int device) {
    if (opened[device]) return;
    opened[device] = 1;
    account(device);
}

int has_context(int device) { return opened[device]; }

size_t allocated_bytes(int device) { return used[device]; }

size_t used_bytes(int number) {
    size_t bytes = bytes_of_others(number);
    for (int device = 0; device < MAX_DEVICES; device++)
        if (opened[device] && card_number(device) == number) bytes += used[device] + card()->context_bytes;
    return bytes;
}

size_t free_bytes(int device) {
    size_t taken = card()->context_bytes + used[device] + bytes_of_others(card_number(device));
    return taken < card()->memory_bytes ? card()->memory_bytes - taken : 0;
}

static int charge_locked(int device, size_t bytes) {
    open_context(device);
    if (bytes > free_bytes(device)) return 0;
    used[device] += bytes;
    account(device);
    return 1;
}

int charge(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    int fits = charge_locked(device, bytes);
    pthread_mutex_unlock(&lock);
    return fits;
}

void discharge(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    used[device] -= bytes;
    account(device);
    pthread_mutex_unlock(&lock);
}

/* ---- addresses */

static void reserve_arena(void) {
    size_t bytes = MOST_ADDRESSES;
    for (; bytes >= LEAST_ADDRESSES; bytes /= 2) {
        arena = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena != MAP_FAILED) break;
    }
    if (arena == MAP_FAILED) stop("1 TiB of addresses cannot be reserved", "raise `ulimit -v`");
    arena = (char *)round_up((size_t)arena, ALIGNMENT);
    arena_end = arena + bytes - ALIGNMENT;
    arena_next = arena;
}

static char *end_of(const struct range *range) { return range->begin + round_up(range->bytes, PAGE); }

static char *lowest_gap(size_t bytes) {
    char *begin = arena;
    for (size_t i = 0; i < num_ranges && (size_t)(ranges[i].begin - begin) < bytes; i++)
        begin = end_of(&ranges[i]);
    return begin;
}

static char *highest_gap(size_t bytes) {
    char *end = arena_end;
    for (size_t i = num_ranges; i-- > 0 && (size_t)(end - end_of(&ranges[i])) < bytes;) end = ranges[i].begin;
    return end - bytes;
}

static char *place(size_t bytes) {
    if (!arena) reserve_arena();
    if (card()->order == HIGHEST_FIRST) return highest_gap(bytes);
    if (card()->order == LOWEST_FIRST) return lowest_gap(bytes);
    arena_next += bytes;
    return arena_next - bytes;
}

static size_t position(const void *address) { /* of the first range that begins beyond it */
    size_t low = 0, high = num_ranges;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle].begin <= (char *)address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct range *range_of(const void *address) {
    size_t at = position(address);
    struct range *range = at ? &ranges[at - 1] : NULL;
    return range && (char *)address < range->begin + range->bytes ? range : NULL;
}

static void *take_locked(size_t bytes, size_t charged, enum kind kind, int device) {
    size_t whole = round_up(bytes ? bytes : 1, PAGE);
    char *begin = place(whole);
    if (kind != RESERVED && mprotect(begin, whole, PROT_READ | PROT_WRITE))
        stop("no more addresses can be mapped", "raise vm.max_map_count");
    if (num_ranges == max_ranges) {
        max_ranges = max_ranges * 2 + 64;
        ranges = realloc(ranges, max_ranges * sizeof *ranges);
    }
    size_t at = position(begin);
    memmove(ranges + at + 1, ranges + at, (num_ranges++ - at) * sizeof *ranges);
    ranges[at] = (struct range){begin, bytes ? bytes : 1, charged, kind, device};
    return begin;
}

void *take_addresses(size_t bytes, size_t charged, enum kind kind, int device) {
    pthread_mutex_lock(&lock);
    void *begin = take_locked(bytes, charged, kind, device);
    pthread_mutex_unlock(&lock);
    return begin;
}

static void give_locked(struct range *range) {
    size_t whole = round_up(range->bytes, PAGE);
    madvise(range->begin, whole, MADV_DONTNEED);
    mprotect(range->begin, whole, PROT_NONE);
    used[range->device] -= range->charged;
    account(range->device);
    memmove(range, range + 1, (ranges + --num_ranges - range) * sizeof *ranges);
}

int give_addresses(const void *begin) {
    pthread_mutex_lock(&lock);
    struct range *range = range_of(begin);
    int found = range && range->begin == begin;
    if (found) give_locked(range);
    pthread_mutex_unlock(&lock);
    return found;
}

int find_range(const void *address, struct range *out) {
    pthread_mutex_lock(&lock);
    struct range *range = range_of(address);
    if (range) *out = *range;
    pthread_mutex_unlock(&lock);
    return range != NULL;
}

int on_device(const void *address) {
    return arena && (char *)address >= arena && (char *)address < arena_end;
}

/* ---- the runtime's functions */

EXPORT cudaError_t cudaMalloc(void **out, size_t bytes) {
    /* The driver hands out 2 MiB pages; smaller requests share them. */
    size_t charged = bytes >= MIB ? round_up(bytes, PAGE) : round_up(bytes, 512);
    pthread_mutex_lock(&lock);
    int fits = charge_locked(current_device, charged);
    *out = fits && bytes ? take_locked(bytes, charged, DEVICE, current_device) : NULL;
    pthread_mutex_unlock(&lock);
    TRACE(1, "cudaMalloc %zu -> %p\n", bytes, *out);
    return fits ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

EXPORT cudaError_t cudaFree(void *pointer) {
    if (!pointer) {
        open_context(current_device);
        return cudaSuccess;
    }
    TRACE(1, "cudaFree %p\n", pointer);
    return give_addresses(pointer) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

EXPORT cudaError_t cudaMallocAsync(void **out, size_t bytes, cudaStream_t stream) {
    return cudaMalloc(out, bytes);
}

EXPORT cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }

/* Managed memory may exceed the card, so it is not charged. */
EXPORT cudaError_t cudaMallocManaged(void **out, size_t bytes, unsigned flags) {
    open_context(current_device);
    *out = take_addresses(bytes, 0, MANAGED, current_device);
    TRACE(1, "cudaMallocManaged %zu -> %p\n", bytes, *out);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemGetInfo(size_t *free_now, size_t *total) {
    open_context(current_device);
    *free_now = free_bytes(current_device), *total = card()->memory_bytes;
    return cudaSuccess;
}

#if CUDART_VERSION >= 13000
#define PLACE struct cudaMemLocation place
EXPORT cudaError_t cudaMemPrefetchAsync(const void *p, size_t n, PLACE, unsigned flags, cudaStream_t s) {
#else
#define PLACE int place
EXPORT cudaError_t cudaMemPrefetchAsync(const void *p, size_t n, PLACE, cudaStream_t s) {
#endif
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemAdvise(const void *p, size_t n, enum cudaMemoryAdvise advice, PLACE) {
    return cudaSuccess;
}

/* ---- pinned memory of the host: a page before it holds its size */

EXPORT cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags) {
    size_t whole = round_up(bytes ? bytes : 1, HOST_PAGE) + HOST_PAGE;
    char *begin = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *out = begin == MAP_FAILED ? NULL : begin + HOST_PAGE;
    if (!*out) return fail(cudaErrorMemoryAllocation);
    *(size_t *)begin = whole;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }

EXPORT cudaError_t cudaFreeHost(void *pointer) {
    char *begin = pointer ? (char *)pointer - HOST_PAGE : NULL;
    if (begin) munmap(begin, *(size_t *)begin);
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostRegister(void *p, size_t n, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaHostUnregister(void *p) { return cudaSuccess; }
EXPORT cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned flags) {
    *out = host;
    return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *pointer) {
    struct range range;
    int found = find_range(pointer, &range), is_managed = found && range.kind == MANAGED;
    memset(out, 0, sizeof *out);
    out->type = is_managed ? cudaMemoryTypeManaged
                : found    ? cudaMemoryTypeDevice
                           : cudaMemoryTypeUnregistered;
    out->device = found ? range.device : -2;
    if (found) out->devicePointer = (void *)pointer;
    if (!found || is_managed) out->hostPointer = (void *)pointer;
    return cudaSuccess;
}

/* ---- memory pools, of which each device has one */

EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    *pool = (cudaMemPool_t)(size_t)(device + 1);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
    if (which <= cudaMemPoolReuseAllowInternalDependencies)
        *(int *)value = 1; /* all ways of reuse are allowed from the start */
    else
        *(size_t *)value = used[(size_t)pool - 1];
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const struct cudaMemAccessDesc *d, size_t n) {
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) { return cudaSuccess; }

/* ---- errors */

EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
