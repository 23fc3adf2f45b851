/* How much every process holds on each card, in memory that they share: NVML lists it, cudaMalloc honours it.
 *
 * Without NULLGPU_STATE a process knows itself and those forked from it after its first look. */
#include "nullgpu.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS 256
#define TABLE_BYTES (SLOTS * sizeof(struct process))

static struct process *slots;

static struct process *table(void) {
    if (slots) return slots;
    const char *path = getenv("NULLGPU_STATE");
    int file = path && *path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    void *map = MAP_FAILED;
    if (file >= 0 && ftruncate(file, TABLE_BYTES) == 0)
        map = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (map == MAP_FAILED)
        map = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return slots = map;
}

static int owner_of(const struct process *slot) { return __atomic_load_n(&slot->pid, __ATOMIC_ACQUIRE); }

static int is_alive(const struct process *slot) {
    int pid = owner_of(slot);
    return pid && (kill(pid, 0) == 0 || errno == EPERM);
}

static struct process *own_slot(int number) {
    struct process *all = table();
    for (int i = 0; i < SLOTS; i++)
        if (owner_of(&all[i]) == getpid() && all[i].number == number) return &all[i];
    for (int i = 0; i < SLOTS; i++) {
        int owner = owner_of(&all[i]);
        if (owner && is_alive(&all[i])) continue;
        if (__atomic_compare_exchange_n(&all[i].pid, &owner, getpid(), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return &all[i];
    }
    return NULL;
}

void publish(int number, size_t bytes) {
    struct process *slot = own_slot(number);
    if (slot) slot->number = number, slot->bytes = bytes;
}

size_t bytes_of_others(int number) {
    size_t bytes = 0;
    struct process *all = table();
    for (int i = 0; i < SLOTS; i++)
        if (owner_of(&all[i]) != getpid() && all[i].number == number && is_alive(&all[i]))
            bytes += all[i].bytes;
    return bytes;
}

unsigned processes_on(int number, struct process *out, unsigned room) {
    unsigned found = 0;
    struct process *all = table();
    for (int i = 0; i < SLOTS; i++)
        if (all[i].number == number && is_alive(&all[i])) {
            if (out && found < room) out[found] = all[i];
            found++;
        }
    return found;
}

__attribute__((destructor)) static void leave(void) {
    for (int i = 0; slots && i < SLOTS; i++)
        if (owner_of(&slots[i]) == getpid()) {
            slots[i].bytes = 0;
            __atomic_store_n(&slots[i].pid, 0, __ATOMIC_RELEASE);
        }
}
