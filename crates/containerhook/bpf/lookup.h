/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who waits for the answer to a fanotify permission event, in the host's terms. Never attached: run by the reader, in its
 * own context, for an event that it has read. The other half is src/lookup.rs.
 */
#pragma once
#include "kernel.h"

enum {
	LOOKUP_NOT_FOUND = 0,
	LOOKUP_FOUND = 1,
	LOOKUP_DISTURBED = 2, /* the list changed under the walk: again */
	LOOKUP_GONE = 3,      /* the event is there, the task is not */
	LOOKUP_NO_FD = 4,
};

struct found {
	u64 start;
	u64 thread_start;
	u64 exec_id;
	u32 tid;
	u32 tgid;
	u32 ppid;
	u32 mntns;
	u32 userns;
	u32 in_host_root; /* its mount namespace and its root are those of the host's first process */
};

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct found);
} found SEC(".maps");

/* More than the descriptors of a batch that is read at once; newest first, so that is how far the walk goes. */
#define STEPS 512

INLINE struct file *open_file(u64 fd)
{
	struct task_struct *reader = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = FIELD(0, reader, files);
	struct fdtable *table = FIELD(0, files, fdt);
	struct file **fds = FIELD(0, table, fd), *file = 0;
	if (fd < FIELD(0, table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	return file;
}

INLINE int describe(struct pid *pid)
{
	struct hlist_node *node = 0;
	bpf_probe_read_kernel(&node, sizeof(node), &pid->tasks[PIDTYPE_PID].first);
	if (!node)
		return LOOKUP_GONE;
	struct task_struct *task =
		(void *)node - __builtin_preserve_field_info(((struct task_struct *)0)->pid_links, 0);
	u32 zero = 0;
	struct found *out = bpf_map_lookup_elem(&found, &zero);
	if (!out)
		return LOOKUP_NOT_FOUND;
	struct task_struct *leader = FIELD(0, task, group_leader);
	struct task_struct *parent = FIELD(0, leader, real_parent);
	out->tid = FIELD(0, task, pid);
	out->thread_start = START_TICKS(0, task);
	out->tgid = FIELD(0, task, tgid);
	out->start = START_TICKS(0, leader);
	out->ppid = FIELD(0, parent, tgid);
	out->exec_id = FIELD(0, task, self_exec_id);
	out->mntns = mount_namespace(0, task);
	struct cred *cred = FIELD(0, task, real_cred);
	struct user_namespace *userns = FIELD(0, cred, user_ns);
	out->userns = FIELD(0, userns, ns.inum);
	struct pid_namespace *first = FIELD(0, pid, numbers[0].ns);
	struct task_struct *init = FIELD(0, first, child_reaper);
	struct fs_struct *theirs = FIELD(0, task, fs), *hosts = FIELD(0, init, fs);
	out->in_host_root = theirs && hosts && out->mntns == mount_namespace(0, init) &&
			    FIELD(0, theirs, root.dentry) == FIELD(0, hosts, root.dentry) &&
			    FIELD(0, theirs, root.mnt) == FIELD(0, hosts, root.mnt);
	return LOOKUP_FOUND;
}

/* The caller's process, as the programs number processes. */
SEC("raw_tp/sys_enter")
int whoami(u64 *ctx)
{
	(void)ctx;
	return bpf_get_current_pid_tgid() >> 32;
}

/* ctx: the group's descriptor, the event's descriptor, both of the calling thread. */
SEC("raw_tp/sys_enter")
int lookup(u64 *ctx)
{
	u64 event_fd = ctx[1];
	struct file *group_file = open_file(ctx[0]);
	struct file *event_file = open_file(event_fd);
	if (!group_file || !event_file)
		return LOOKUP_NO_FD;
	struct inode *inode = FIELD(0, event_file, f_inode);
	struct fsnotify_group *group = FIELD(0, group_file, private_data);
	struct list_head *head = __builtin_preserve_access_index(&group->fanotify_data.access_list);

	/*
	 * No lock is held. Our own event stays where it is, for nobody but us can answer it; others may be answered and
	 * freed under the walk. So each step is believed only if the link that led to it is still there after the event has
	 * been read, and the event must be of the inode that the descriptor is of.
	 */
	struct list_head *from = head;
	struct list_head *at = FIELD(0, from, prev);
	for (int i = 0; i < STEPS; i++) {
		if (at == head)
			return LOOKUP_NOT_FOUND;
		struct fsnotify_event *fse =
			(void *)at - __builtin_preserve_field_info(((struct fsnotify_event *)0)->list, 0);
		struct fanotify_event *fae =
			(void *)fse - __builtin_preserve_field_info(((struct fanotify_event *)0)->fse, 0);
		struct fanotify_perm_event *event =
			(void *)fae - __builtin_preserve_field_info(((struct fanotify_perm_event *)0)->fae, 0);
		int fd = FIELD(0, event, fd);
		struct list_head *next = FIELD(0, at, prev);
		if (!at || !next || FIELD(0, from, prev) != at)
			return LOOKUP_DISTURBED;
		if (fd == (int)event_fd) {
			struct dentry *dentry = FIELD(0, event, path.dentry);
			if (FIELD(0, dentry, d_inode) != inode)
				return LOOKUP_DISTURBED;
			return describe(FIELD(0, fae, pid));
		}
		from = at;
		at = next;
	}
	return LOOKUP_NOT_FOUND;
}
