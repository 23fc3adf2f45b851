/* How much every process holds on each card, in memory that they share: NVML lists it, cudaMalloc honours it.
 *
 * Without NULLGPU_STATE a process knows itself and those forked from it after its first look. */
#include "nullgpu.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLAIMED (-1) /* in place of a pid: somebody is about to be there */
#define TABLE_BYTES (MAX_PROCESSES * sizeof(struct process))

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

static int is_alive(int pid) { return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM); }

static struct process *own_slot(int number) {
    struct process *all = table();
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (owner_of(&all[i]) == getpid() && all[i].number == number) return &all[i];
    for (int i = 0; i < MAX_PROCESSES; i++) {
        int owner = owner_of(&all[i]);
        if (owner == CLAIMED || is_alive(owner)) continue;
        if (!__atomic_compare_exchange_n(&all[i].pid, &owner, CLAIMED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        /* What whoever was here before left must never count as this process's. */
        all[i].bytes = 0, all[i].number = number;
        __atomic_store_n(&all[i].pid, getpid(), __ATOMIC_RELEASE);
        return &all[i];
    }
    stop("256 processes are on the null GPUs, as many as are counted", "end some of them");
}

void publish(int number, size_t bytes) { own_slot(number)->bytes = bytes; }

size_t bytes_of_others(int number) {
    size_t bytes = 0;
    struct process *all = table();
    for (int i = 0; i < MAX_PROCESSES; i++) {
        int owner = owner_of(&all[i]);
        if (owner != getpid() && all[i].number == number && is_alive(owner)) bytes += all[i].bytes;
    }
    return bytes;
}

unsigned processes_on(int number, struct process *out, unsigned room) {
    unsigned found = 0;
    struct process *all = table();
    for (int i = 0; i < MAX_PROCESSES; i++) {
        int owner = owner_of(&all[i]);
        if (all[i].number != number || !is_alive(owner)) continue;
        if (out && found < room) out[found] = (struct process){owner, number, all[i].bytes};
        found++;
    }
    return found;
}

__attribute__((destructor)) static void leave(void) {
    for (int i = 0; slots && i < MAX_PROCESSES; i++)
        if (owner_of(&slots[i]) == getpid()) {
            slots[i].bytes = 0;
            __atomic_store_n(&slots[i].pid, 0, __ATOMIC_RELEASE);
        }
}
