/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The first instruction of containers that no mark held, and a stop there where one is asked for. The other half is
 * src/exec_watch.rs.
 */
#pragma once
#include "kernel.h"

/* include/linux/sched/signal.h: the init of a pid namespace, set at its fork. */
#define SIGNAL_UNKILLABLE 0x40
/* include/linux/sched.h: forked, and has not executed anything since. */
#define PF_FORKNOEXEC 0x40

#define SIGSTOP 19
#define ANCESTORS 6
#define FILENAME 256

struct ancestor {
	u64 start;
	u32 tgid;
	char comm[16];
	u32 unused;
};

struct seen {
	u64 at;
	u64 start;
	u64 init_start;
	u64 cgroup;
	u32 tgid;
	u32 init; /* the tgid of the pid namespace's init: the task itself, or its parent */
	u32 mntns;
	u32 pidns;
	u32 stopped_for; /* 0: it runs on */
	u32 unused;
	char comm[16];
	struct ancestor ancestors[ANCESTORS];
	char filename[FILENAME];
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_INT(max_entries, 65536);
} execs SEC(".maps");

/* Between the twins: what the first has dealt with, by tgid. */
struct {
	MAP_INT(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_INT(max_entries, 256);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} dealt_with SEC(".maps");

/* How often the ring was full: [0] something was not told, [1] something was not stopped. */
struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 2);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} untold SEC(".maps");

/*
 * Processes that may become the init of a container that is to be stopped, and those that did and were. Who guards the
 * listener (src/guardian.rs) reads it when the listener is gone.
 */
struct under {
	u64 start;
	u32 origin; /* tgid of the runtime's process */
	u32 mntns;  /* and its mount namespace; 0: this one has been stopped */
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_HASH);
	MAP_INT(map_flags, BPF_F_NO_PREALLOC);
	MAP_INT(max_entries, 4096);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct under);
} unders SEC(".maps");

INLINE int is_init_below_the_host(int direct, struct task_struct *task)
{
	struct signal_struct *signal = FIELD(direct, task, signal);
	if (!(FIELD(direct, signal, flags) & SIGNAL_UNKILLABLE))
		return 0;
	struct pid *pid = FIELD(direct, task, thread_pid);
	return FIELD(direct, pid, level) > 0;
}

/* The first eight bytes of a path as one number, and those after. */
#define PROC_SEL 0x65732f636f72702full
#define LF_EXE 0x6578652f666cull /* and its end */
#define LF_FD 0x2f64662f666cull
#define DEV_FD 0x2f64662f7665642full
#define MEMFD 0x3a64666d656dull

/* A runtime that executes itself again, from a copy of itself (CVE-2019-5736) or not. */
INLINE int is_own_reexec(const char *filename)
{
	u64 f[2] = {};
	bpf_probe_read_kernel_str(f, sizeof(f), filename);
	if (f[0] == PROC_SEL)
		return (f[1] & 0xffffffffffffffull) == LF_EXE || (f[1] & 0xffffffffffffull) == LF_FD;
	return f[0] == DEV_FD || (f[0] & 0xffffffffffffull) == MEMFD;
}

INLINE void count(u32 which)
{
	u64 *n = bpf_map_lookup_elem(&untold, &which);
	if (n)
		__sync_fetch_and_add(n, 1);
}

/*
 * Only what every exec of the host comes by is read directly. For each pointer that a tp_btf program follows itself the
 * verifier looks through all names of the kernel's types, some of them thrice: a thousand instructions took it 50 ms.
 */
INLINE int process_exec(int direct, int twin, struct task_struct *task, struct linux_binprm *bprm)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct task_struct *init = 0;

	if (is_init_below_the_host(direct, task)) {
		init = task;
	} else {
		/* bubblewrap's init never executes anything itself: its child is the container's first program. */
		struct task_struct *parent = FIELD(direct, task, real_parent);
		if (is_init_below_the_host(direct, parent) && FIELD(direct, parent, flags) & PF_FORKNOEXEC)
			init = parent;
	}

	u32 mntns = 0, stop_for = 0;
	struct under *under = bpf_map_lookup_elem(&unders, &tgid);
	if (!init && !under)
		return 0;
	mntns = mount_namespace(0, task);

	/*
	 * The second of the twins speaks only where the first was skipped. Without `init` there is nothing to say twice: the
	 * first has marked `under` as stopped.
	 */
	if (init && twin) {
		if (bpf_map_delete_elem(&dealt_with, &tgid) == 0)
			return 0;
	} else if (init) {
		u64 yes = 1;
		bpf_map_update_elem(&dealt_with, &tgid, &yes, BPF_ANY);
	}

	if (under) {
		/* The init of a new pid namespace is past all that: whatever it executes is the container's. */
		if (under->start == START_TICKS(0, task) && under->mntns && under->mntns != mntns &&
		    (init == task || !is_own_reexec(FIELD(0, bprm, filename))))
			stop_for = under->origin;
	}
	if (!stop_for) {
		/* The kernel's own evidence of a container: another pid namespace and another mount namespace. */
		struct pid *pid = FIELD(0, task, thread_pid);
		struct pid_namespace *host = FIELD(0, pid, numbers[0].ns);
		if (!init || mntns == mount_namespace(0, FIELD(0, host, child_reaper)))
			return 0;
	}

	struct seen *e = bpf_ringbuf_reserve(&execs, sizeof(*e), 0);
	if (!e) {
		/* One that nobody is told of must not be stopped: nobody would let it go on. */
		count(0);
		if (stop_for)
			count(1);
		return 0;
	}
	e->at = bpf_ktime_get_ns();
	e->start = START_TICKS(0, task);
	e->tgid = tgid;
	e->init = tgid;
	e->init_start = e->start;
	if (init && init != task) {
		e->init = FIELD(0, init, tgid);
		e->init_start = START_TICKS(0, init);
	}
	e->cgroup = bpf_get_current_cgroup_id();
	e->mntns = mntns;
	struct nsproxy *nsproxy = FIELD(0, task, nsproxy);
	struct pid_namespace *pidns = FIELD(0, nsproxy, pid_ns_for_children);
	e->pidns = FIELD(0, pidns, ns.inum);
	e->unused = 0;
	bpf_probe_read_kernel(e->comm, sizeof(e->comm), &task->comm);
	e->filename[0] = 0;
	bpf_probe_read_kernel_str(e->filename, sizeof(e->filename), FIELD(0, bprm, filename));

	struct task_struct *at = task;
#pragma unroll
	for (int i = 0; i < ANCESTORS; i++) {
		struct ancestor *a = &e->ancestors[i];
		at = FIELD(0, at, real_parent);
		at = FIELD(0, at, group_leader);
		a->tgid = FIELD(0, at, tgid);
		a->start = START_TICKS(0, at);
		a->unused = 0;
		bpf_probe_read_kernel(a->comm, sizeof(a->comm), &at->comm);
	}

	e->stopped_for = 0;
	if (stop_for) {
		/*
		 * Once: what it executes later is the container's own business. By a new value: writing to the old one could hit
		 * one that was released and used again meanwhile.
		 */
		struct under stopped = { e->start, stop_for, 0 };
		bpf_map_update_elem(&unders, &tgid, &stopped, BPF_EXIST);
		if (bpf_send_signal(SIGSTOP) == 0)
			e->stopped_for = stop_for;
		else
			count(1);
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * Attached only while there is something to stop. Descent is inherited here and not looked up among parents at the
 * exec: conmon and the like reparent.
 */
INLINE int process_fork(int direct, struct task_struct *parent, struct task_struct *child)
{
	u32 tgid = FIELD(direct, parent, tgid);
	struct under *under = bpf_map_lookup_elem(&unders, &tgid);
	if (!under)
		return 0;
	u32 child_tgid = FIELD(direct, child, tgid);
	if (child_tgid == tgid || under->start != START_TICKS(direct, FIELD(direct, parent, group_leader)))
		return 0;
	/*
	 * A hook that runs inside the container is a child of its init, and not what is to be stopped. An init itself is a
	 * child of the runtime, which lives outside (runc's clones it from a process inside, with CLONE_PARENT).
	 */
	if (mount_namespace(direct, FIELD(direct, child, real_parent)) != under->mntns)
		return 0;
	struct under value = { START_TICKS(direct, child), under->origin, under->mntns };
	if (bpf_map_update_elem(&unders, &child_tgid, &value, BPF_ANY) != 0)
		count(1);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int exec_btf(u64 *ctx)
{
	return process_exec(1, 0, (struct task_struct *)ctx[0], (struct linux_binprm *)ctx[2]);
}

SEC("raw_tp/sched_process_exec")
int exec_raw(u64 *ctx)
{
	return process_exec(0, 0, (struct task_struct *)ctx[0], (struct linux_binprm *)ctx[2]);
}

SEC("tp_btf/sched_process_exec")
int exec_btf_twin(u64 *ctx)
{
	return process_exec(1, 1, (struct task_struct *)ctx[0], (struct linux_binprm *)ctx[2]);
}

SEC("raw_tp/sched_process_exec")
int exec_raw_twin(u64 *ctx)
{
	return process_exec(0, 1, (struct task_struct *)ctx[0], (struct linux_binprm *)ctx[2]);
}

SEC("tp_btf/sched_process_fork")
int fork_btf(u64 *ctx)
{
	return process_fork(1, (struct task_struct *)ctx[0], (struct task_struct *)ctx[1]);
}

SEC("raw_tp/sched_process_fork")
int fork_raw(u64 *ctx)
{
	return process_fork(0, (struct task_struct *)ctx[0], (struct task_struct *)ctx[1]);
}

SEC("tp_btf/sched_process_fork")
int fork_btf_twin(u64 *ctx)
{
	return process_fork(1, (struct task_struct *)ctx[0], (struct task_struct *)ctx[1]);
}

SEC("raw_tp/sched_process_fork")
int fork_raw_twin(u64 *ctx)
{
	return process_fork(0, (struct task_struct *)ctx[0], (struct task_struct *)ctx[1]);
}
