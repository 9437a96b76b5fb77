/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs need to know of the kernel: a few fields, a few helpers.
 *
 * There is no vmlinux.h: every record below is relocated when it is loaded (CO-RE), so only the names and the nesting
 * have to be right. There is no libbpf header either: the object then depends on clang alone, and is the same to the
 * byte wherever it is built.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/*
 * Each program at a tracepoint exists twice. Since 6.2 the kernel skips a program on a processor where a run of the same
 * program is under way (05b24ff9b2cf), and where tracepoints may be preempted that happens: a task is preempted inside the
 * program, and another one comes by. It misses that program, and finds the twin free. [seen: 7.2, preempt=full, two busy
 * processors: up to 30 skipped runs of the first in 80 exits under test, none of the twin.]
 */

/* The form in which BTF describes a map: an integer as the size of an array. */
#define MAP_INT(name, value) int (*name)[value]
#define MAP_TYPE(name, value) value *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_F_NO_PREALLOC = 1,
	BPF_ANY = 0,
	BPF_EXIST = 2,
};

/* Helpers by number (include/uapi/linux/bpf.h: these never change). */
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*const bpf_get_current_task)(void) = (void *)35;
static long (*const bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*const bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*const bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static long (*const bpf_send_signal)(u32 sig) = (void *)109;
static u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static void *(*const bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live;
	u32 flags;
	int group_exit_code;
};

struct task_struct;

struct ns_common {
	u32 inum;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct pid_namespace {
	struct ns_common ns;
	struct task_struct *child_reaper;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

enum { PIDTYPE_PID = 0, PIDTYPE_MAX = 4 };

/* `numbers` is as long as the namespace is deep; the first is the host's. */
struct pid {
	u32 level;
	struct hlist_head tasks[PIDTYPE_MAX];
	struct upid numbers[1];
};

struct files_struct;

struct dentry;
struct vfsmount;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root;
};

struct user_namespace {
	struct ns_common ns;
};

struct cred {
	struct user_namespace *user_ns;
};

struct task_struct {
	int pid;
	int tgid;
	u32 flags;
	int exit_code;
	u64 start_boottime;
	u64 self_exec_id;
	struct cred *real_cred;
	struct fs_struct *fs;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct signal_struct *signal;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	struct hlist_node pid_links[PIDTYPE_MAX];
	struct files_struct *files;
	char comm[16];
};

struct linux_binprm {
	const char *filename;
};

struct inode;

struct dentry {
	struct inode *d_inode;
};

struct file {
	void *private_data;
	struct inode *f_inode;
};

struct fdtable {
	u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct list_head {
	struct list_head *next, *prev;
};

struct fanotify_group_private_data {
	struct list_head access_list;
};

struct fsnotify_group {
	struct fanotify_group_private_data fanotify_data;
};

struct fsnotify_event {
	struct list_head list;
};

struct fanotify_event {
	struct fsnotify_event fse;
	struct pid *pid;
};

struct fanotify_perm_event {
	struct fanotify_event fae;
	struct path path;
	int fd;
};

#pragma clang attribute pop

/* /proc/PID/stat shows start times in these: USER_HZ is 100 on every architecture of interest. */
#define NS_PER_TICK 10000000

/* The reader's time namespace shifts what it reads in /proc/PID/stat. */
volatile const s64 boottime_offset = 0;

#define START_TICKS(direct, task) ((FIELD(direct, task, start_boottime) + boottime_offset) / NS_PER_TICK)

/*
 * One field. A tp_btf program follows its arguments' pointers itself; that works even where the kernel is locked down
 * for confidentiality and refuses bpf_probe_read_kernel. A raw_tp program cannot and must use the helper.
 * `direct` is a constant: one of the branches is compiled away.
 */
#define FIELD(direct, p, f)                                              \
	({                                                               \
		typeof((p)->f) value_;                                   \
		if (direct)                                              \
			value_ = (p)->f;                                 \
		else                                                     \
			bpf_probe_read_kernel(&value_, sizeof(value_), &(p)->f); \
		value_;                                                  \
	})

INLINE u32 mount_namespace(int direct, struct task_struct *task)
{
	struct nsproxy *nsproxy = FIELD(direct, task, nsproxy);
	struct mnt_namespace *mnt_ns = FIELD(direct, nsproxy, mnt_ns);
	return FIELD(direct, mnt_ns, ns.inum);
}
