/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How watched processes end. The other half is src/exit/record.rs. */
#pragma once
#include "kernel.h"

/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 4

struct watched {
	u64 start; /* ticks after boot, as user space read it in /proc/PID/stat */
	u64 at;    /* when it ended, once `dead`: CLOCK_MONOTONIC, ns */
	s32 status;
	u32 dead; /* and the ring was full */
	u32 oom;  /* the kernel chose it for want of memory */
	u32 unused;
};

struct ended {
	u64 start;
	u64 at;
	u32 tgid;
	s32 status;
	u32 oom;
	u32 unused;
};

/* Not preallocated: ten thousand watched processes are rare, and the table should cost nothing until then. */
struct {
	MAP_INT(type, BPF_MAP_TYPE_HASH);
	MAP_INT(map_flags, BPF_F_NO_PREALLOC);
	MAP_INT(max_entries, 65536);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct watched);
} watched SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_INT(max_entries, 65536);
} exits SEC(".maps");

/* How often the ring was full. */
struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} unsent SEC(".maps");

/*
 * A runtime that makes a process and does not wait for it writes down its pid, and that is read when the runtime has ended. The
 * process may have ended, too, and have been reaped, before anybody could ask to have it watched. So as long as such a runtime
 * is at work (one word: 0, or when the earliest of them began, in ticks) the ends of all processes that are younger are kept for
 * a moment: the last of them, by pid.
 */
struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} young_since SEC(".maps");

struct young {
	u64 start;
	u64 at;
	s32 status;
	u32 unused;
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_INT(max_entries, 4096);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct young);
} young_ends SEC(".maps");

INLINE int process_exit(int direct, struct task_struct *task)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct watched *w = bpf_map_lookup_elem(&watched, &tgid);
	u32 first = 0;
	u64 *since = bpf_map_lookup_elem(&young_since, &first);
	u64 young = since ? *since : 0;
	if (!w && !young)
		return 0;

	/*
	 * Every thread comes by here, after it has decremented `live`. Two that leave at the same time may both read 0:
	 * they say the same, and user space believes the first. So do the twins.
	 */
	struct signal_struct *signal = FIELD(direct, task, signal);
	if (FIELD(direct, signal, live.counter) != 0)
		return 0;

	struct task_struct *leader = FIELD(direct, task, group_leader);
	u64 start = START_TICKS(direct, leader);
	if (w && start != w->start)
		w = 0;
	if (!w && (!young || start < young))
		return 0;

	/* What wait4 will say (wait_task_zombie). Since 6.0 the flag is always set by the last thread. */
	s32 status = FIELD(direct, signal, flags) & SIGNAL_GROUP_EXIT ? FIELD(direct, signal, group_exit_code)
								      : FIELD(direct, leader, exit_code);
	u64 at = bpf_ktime_get_ns();

	if (!w) {
		struct young y = { start, at, status, 0 };
		bpf_map_update_elem(&young_ends, &tgid, &y, BPF_ANY);
		return 0;
	}

	struct ended *e = bpf_ringbuf_reserve(&exits, sizeof(*e), 0);
	if (!e) {
		/*
		 * The ring's reader is behind. Leave the word in the table and let it count that there is one to look for. Not
		 * by writing to `w`: the reader may have taken it out meanwhile, and its memory may be another's entry.
		 */
		struct watched left = { start, at, status, 1, w->oom, 0 };
		bpf_map_update_elem(&watched, &tgid, &left, BPF_EXIST);
		u32 zero = 0;
		u64 *count = bpf_map_lookup_elem(&unsent, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	e->start = start;
	e->at = at;
	e->tgid = tgid;
	e->status = status;
	e->oom = w->oom;
	e->unused = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * The kernel marks its victim while it holds the victim's task_lock, after it has sent the signal. The victim passes
 * exit_mm, which takes that lock, before its exit is recorded; since 6.16 after it. So the reader looks once more.
 */
INLINE int mark(u32 tgid, struct watched *w)
{
	/* As above: not by writing to `w`. */
	struct watched marked = *w;
	marked.oom = 1;
	bpf_map_update_elem(&watched, &tgid, &marked, BPF_EXIST);
	return 0;
}

INLINE int victim(int direct, struct task_struct *task)
{
	u32 tgid = FIELD(direct, task, tgid);
	struct watched *w = bpf_map_lookup_elem(&watched, &tgid);
	if (!w)
		return 0;
	struct task_struct *leader = FIELD(direct, task, group_leader);
	u64 start = START_TICKS(direct, leader);
	if (start != w->start)
		return 0;
	return mark(tgid, w);
}

/* Until 6.8 the tracepoint has the pid alone, and a program that follows it as a pointer is refused. */
INLINE int victim_or_pid(u64 word)
{
	if (word >> 32)
		return victim(0, (struct task_struct *)word);
	u32 pid = word;
	struct watched *w = bpf_map_lookup_elem(&watched, &pid);
	return w ? mark(pid, w) : 0;
}

SEC("tp_btf/mark_victim")
int victim_btf(u64 *ctx)
{
	return victim(1, (struct task_struct *)ctx[0]);
}

SEC("tp_btf/mark_victim")
int victim_btf_twin(u64 *ctx)
{
	return victim(1, (struct task_struct *)ctx[0]);
}

SEC("raw_tp/mark_victim")
int victim_raw(u64 *ctx)
{
	return victim_or_pid(ctx[0]);
}

SEC("raw_tp/mark_victim")
int victim_raw_twin(u64 *ctx)
{
	return victim_or_pid(ctx[0]);
}

SEC("tp_btf/sched_process_exit")
int exit_btf(u64 *ctx)
{
	return process_exit(1, (struct task_struct *)ctx[0]);
}

SEC("tp_btf/sched_process_exit")
int exit_btf_twin(u64 *ctx)
{
	return process_exit(1, (struct task_struct *)ctx[0]);
}

SEC("raw_tp/sched_process_exit")
int exit_raw(u64 *ctx)
{
	return process_exit(0, (struct task_struct *)ctx[0]);
}

SEC("raw_tp/sched_process_exit")
int exit_raw_twin(u64 *ctx)
{
	return process_exit(0, (struct task_struct *)ctx[0]);
}
