/* What the files of the shim share: the card, its memory, and how calls are traced. */
#ifndef NULLGPU_H
#define NULLGPU_H
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if CUDART_VERSION < 12080 /* which brought libraries to the runtime */
typedef struct cudaLibrary *cudaLibrary_t;
enum cudaJitOption { cudaJitMaxRegisters };
enum cudaLibraryOption { cudaLibraryHostUniversalFunctionAndDataTable };
#endif

/* A function that programs see; everything else stays inside the library. */
#define EXPORT __attribute__((visibility("default")))
#define MIB ((size_t)1 << 20)
#define PAGE (2 * MIB) /* what the driver takes from the card at a time */
#define MAX_DEVICES 8

/* ---- card.c: the card and the settings, read once from the environment */

enum address_order { LOWEST_FIRST, HIGHEST_FIRST, NEVER_REUSED };

struct card {
    int major, minor;
    int multiprocessors, threads_per_multiprocessor;
    size_t shared_per_multiprocessor, shared_per_block;
    size_t memory_bytes;
    size_t context_bytes;   /* gone as soon as a process opens the device */
    size_t copy_limit;      /* largest copy to the device that is made */
    size_t cudnn_workspace; /* what each cuDNN plan says it needs */
    enum address_order order;
    int count;
    int trace;
    char name[128];
};
const struct card *card(void);
int visible_count(void);     /* devices that CUDA_VISIBLE_DEVICES leaves */
int card_number(int device); /* the card, as NVML counts, that a device of CUDA is */
__attribute__((noreturn)) void stop(const char *what, const char *advice);
__attribute__((noreturn)) void missing(const char *function);

#define TRACE(level, ...)                                                                                    \
    do {                                                                                                     \
        if (card()->trace >= (level)) fprintf(stderr, "nullgpu: " __VA_ARGS__);                              \
    } while (0)

/* ---- processes.c: how much every process holds on each card */

#define MAX_PROCESSES 256
struct process {
    int pid, number; /* of the card, as NVML counts */
    size_t bytes;
};
void publish(int number, size_t bytes); /* this process's part of a card */
size_t bytes_of_others(int number);
unsigned processes_on(int number, struct process *out, unsigned room); /* returns how many there are */

/* ---- memory.c: addresses and bytes of the devices */

enum kind { DEVICE = 1, RESERVED, MANAGED };
struct range {
    char *begin;
    size_t bytes, charged;
    enum kind kind;
    int device;
};
extern __thread int current_device;
void open_context(int device);
int has_context(int device);
int charge(int device, size_t bytes); /* 0 where the card has not that much left */
void discharge(int device, size_t bytes);
void *take_addresses(size_t bytes, size_t charged, enum kind kind, int device);
int give_addresses(const void *begin); /* 0 where no range begins there */
int find_range(const void *address, struct range *out);
int on_device(const void *address);
size_t free_bytes(int device);
size_t used_bytes(int number); /* of a card as NVML counts, by all processes, contexts included */
size_t allocated_bytes(int device); /* by this process */

/* ---- copies.c, kernels.c */

void copy(void *to, const void *from, size_t bytes);
extern __thread const char *last_kernel;

/* ---- device.c, memory.c: errors as the runtime keeps them, attributes for both interfaces */

cudaError_t fail(cudaError_t error);
int device_attribute(int which, int device);
void card_uuid(char *sixteen_bytes, int number);
void card_uuid_text(char *text, size_t length, int number);

static inline size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
static inline void *new_handle(void) { return calloc(1, 256); }
#define CREATES(type)                                                                                        \
    {                                                                                                        \
        *out = (type)new_handle();                                                                           \
        return 0;                                                                                            \
    }

#endif
