/* Checks of arguments. Each returns what is wrong, beginning with the field's name, or NULL. A library built with
   PUREDROP_CHECKS asks all of them in every call and aborts with the function's name and the answer. One built without
   trusts Python, which has checked its tensors, except for what costs Python time and the library none: which operands a
   call has, and what the lists of panels hold. */
#ifndef PUREDROP_CHECKS_H
#define PUREDROP_CHECKS_H

#include "puredrop.h"

const char *fault_of_call(const struct puredrop_call *call);
const char *fault_of_operands(const struct puredrop_call *call);
const char *fault_of_panels(const struct puredrop_panels *call);
const char *fault_of_lists(const struct puredrop_panels *call);
const char *fault_of_masks(const float *keep, int64_t groups, int64_t size, const int32_t *index, const int32_t *at,
                           const int32_t *counts);

#ifdef PUREDROP_CHECKS
#include <stdio.h>
#include <stdlib.h>

static inline void stop_at(const char *function, const char *fault)
{
    if (fault) {
        fprintf(stderr, "%s: %s\n", function, fault);
        abort();
    }
}
#define CHECK(fault) stop_at(__func__, fault)
#else
#define CHECK(fault) ((void)0)
#endif

#endif
