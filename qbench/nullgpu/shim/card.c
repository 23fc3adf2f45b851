/* The card and the settings: all come from the environment, which `qbench.nullgpu.environment` writes.
 *
 *   NULLGPU_CC              compute capability, such as 8.6
 *   NULLGPU_SM              multiprocessors          NULLGPU_THREADS_PER_SM     threads of each
 *   NULLGPU_SHARED_PER_SM   bytes of shared memory   NULLGPU_SHARED_PER_BLOCK   bytes a block may ask for
 *   NULLGPU_MEMORY          bytes in all             NULLGPU_CONTEXT            bytes that a context takes
 *   NULLGPU_NAME            name of the card
 *
 * These have a default:
 *   NULLGPU_COUNT           number of such cards (1)
 *   NULLGPU_VA              up: lowest free address first (default); down: highest first; rise: never reused
 *   NULLGPU_COPY            largest copy to the device that is made, in bytes (1 MiB)
 *   NULLGPU_CUDNN_WORKSPACE bytes that each cuDNN plan says it needs (0: not published)
 *   NULLGPU_STATE           file by which processes share the cards and see one another in NVML
 *   NULLGPU_TRACE           1: kernels, library calls and device allocations on stderr; 2: further calls, too
 *   NULLGPU_ALONE           1: one rank of several, whose collectives wait for no other
 *   NULLGPU_BESIDE_DRIVER   1: load although the machine has an NVIDIA driver
 */
#include "nullgpu.h"
#include <unistd.h>

static struct card the_card;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void stop(const char *what, const char *advice) {
    fprintf(stderr, "nullgpu: %s; %s\n", what, advice);
    abort();
}

void missing(const char *function) {
    char what[160];
    snprintf(what, sizeof what, "%s is not answered by the null GPU", function);
    stop(what, "add it to qbench/nullgpu/shim, or measure this program on a GPU");
}

static const char *text(const char *name, const char *fallback) {
    const char *value = getenv(name);
    if (value && *value) return value;
    if (fallback) return fallback;
    char what[80];
    snprintf(what, sizeof what, "%s is not set", name);
    stop(what, "start the program with the environment that qbench makes for a card");
}

static size_t bytes(const char *name, const char *fallback) {
    return strtoull(text(name, fallback), NULL, 0);
}

static void read_environment(void) {
    if (access("/dev/nvidiactl", F_OK) == 0 && atoi(text("NULLGPU_BESIDE_DRIVER", "0")) == 0)
        stop("this machine has an NVIDIA driver", "measure on its GPU, or set NULLGPU_BESIDE_DRIVER=1");
    struct card *c = &the_card;
    if (sscanf(text("NULLGPU_CC", NULL), "%d.%d", &c->major, &c->minor) != 2)
        stop("NULLGPU_CC is not a compute capability", "give one such as 8.6");
    c->multiprocessors = (int)bytes("NULLGPU_SM", NULL);
    c->threads_per_multiprocessor = (int)bytes("NULLGPU_THREADS_PER_SM", NULL);
    c->shared_per_multiprocessor = bytes("NULLGPU_SHARED_PER_SM", NULL);
    c->shared_per_block = bytes("NULLGPU_SHARED_PER_BLOCK", NULL);
    c->memory_bytes = bytes("NULLGPU_MEMORY", NULL);
    c->context_bytes = bytes("NULLGPU_CONTEXT", NULL);
    snprintf(c->name, sizeof c->name, "%s", text("NULLGPU_NAME", NULL));
    c->copy_limit = bytes("NULLGPU_COPY", "1048576");
    c->cudnn_workspace = bytes("NULLGPU_CUDNN_WORKSPACE", "0");
    c->count = (int)bytes("NULLGPU_COUNT", "1");
    if (c->count > MAX_DEVICES) stop("NULLGPU_COUNT is too large", "the null GPU has at most 8 cards");
    c->trace = (int)bytes("NULLGPU_TRACE", "0");
    char order = *text("NULLGPU_VA", "up");
    c->order = order == 'd' ? HIGHEST_FIRST : order == 'r' ? NEVER_REUSED : LOWEST_FIRST;
}

const struct card *card(void) {
    pthread_once(&once, read_environment);
    return &the_card;
}

/* ---- CUDA shows what CUDA_VISIBLE_DEVICES allows: numbers or UUIDs, up to the first that is no card */

static int shown[MAX_DEVICES], num_shown;
static pthread_once_t shown_once = PTHREAD_ONCE_INIT;

static int number_of(const char *entry) {
    char *end;
    long number = strtol(entry, &end, 10);
    if (end != entry) return number >= 0 && number < card()->count ? (int)number : -1;
    size_t length = strcspn(entry, ",");
    for (int i = 0; length && i < card()->count; i++) {
        char uuid[64];
        card_uuid_text(uuid, sizeof uuid, i);
        if (!strncmp(uuid, entry, length)) return i;
    }
    return -1;
}

static void read_shown(void) {
    const char *entry = getenv("CUDA_VISIBLE_DEVICES");
    while (!entry && num_shown < card()->count) shown[num_shown] = num_shown, num_shown++;
    while (entry && *entry && num_shown < MAX_DEVICES) {
        int number = number_of(entry);
        if (number < 0) return;
        shown[num_shown++] = number;
        entry += strcspn(entry, ",");
        if (*entry) entry++;
    }
}

int visible_count(void) {
    pthread_once(&shown_once, read_shown);
    return num_shown;
}

int card_number(int device) { return device < visible_count() ? shown[device] : device; }

/* By this a program can tell that the library is loaded. */
EXPORT int nullgpu_is_here(void) { return 1; }
