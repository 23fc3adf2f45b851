/* What libraries import and no training step calls: each ends the program with its name.
 *
 * unanswered.inc holds the names, one a line; `qbench.nullgpu.build` says how a newer library's are found. */
#include "nullgpu.h"

/* Under another name in C, since the headers declare some of them. */
#define UNANSWERED(name)                                                                                     \
    EXPORT void unanswered_##name(void) __asm__(#name);                                                      \
    void unanswered_##name(void) { missing(#name); }
#include "unanswered.inc"
