/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The BPF programs of containerhook, compiled by `cargo xtask bpf` into containerhook.bpf.o, which is committed.
 *
 * The rest of containerhook is under the Apache licence. The kernel lends bpf_probe_read_kernel and the like only to
 * programs that say they are under a licence compatible with the GPL, so this folder is under the GPL, version 2, or the
 * two-clause BSD licence, as you choose.
 *
 * Each program is loaded on its own: a kernel that refuses one costs only what that one does.
 */
#include "exec.h"
#include "exit.h"
#include "lookup.h"
#include "tracepoint.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
