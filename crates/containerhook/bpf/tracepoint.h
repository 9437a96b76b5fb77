/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The arguments of every execve, as they are when it begins: for a listener that may not read another process's memory.
 * Attached only where nothing else works. The other half is src/capture/traced.rs.
 *
 * Nothing is told here from anything else: which file is executed is known only later, and a name says little, for wrappers
 * and links have any. So each task's words are left in a place that its tid points to, where the reader finds them if the
 * kernel then holds the execution. Nobody has to clean up: a place is written over by the next execve of the same task, or of
 * one whose tid points there too, and read only by who finds the tid, the start and the exec's number in it.
 */
#pragma once
#include "kernel.h"

/* Bytes that are read at once, and so the room behind the text. */
#define CHUNK 1024
#define TEXT 3072
#define MORE_TEXT 65536
/* Arguments, and further chunks of long ones. */
#define WORDS 256
#define MORE_WORDS 1024

enum {
	WORDS_GO_ON = 0,
	WORDS_WHOLE = 1,
	WORDS_MISSING = 2, /* a page is not there, and nothing that may run here can wait for it */
	WORDS_FULL = 3,
};

struct words {
	u32 tid;
	u32 outcome;
	u64 start;
	u64 exec_id;
	u64 argv;
	u64 at; /* inside an argument that has begun */
	u32 argc;
	u32 len;
};

struct traced {
	struct words words;
	char text[TEXT + CHUNK];
	u32 tid_again; /* who reads while another writes sees two different ones */
	u32 more;      /* it did not fit, and is in `traced_more` */
};

struct traced_more {
	struct words words;
	char text[MORE_TEXT + CHUNK];
	u32 tid_again;
	u32 unused;
};

/* With one place each until somebody asks for more. */
struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct traced);
} traced SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_ARRAY);
	MAP_INT(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct traced_more);
} traced_more SEC(".maps");

struct {
	MAP_INT(type, BPF_MAP_TYPE_PROG_ARRAY);
	MAP_INT(max_entries, 2);
	MAP_INT(key_size, 4);
	MAP_INT(value_size, 4);
} stages SEC(".maps");

volatile const u32 traced_places = 1;
volatile const u32 traced_more_places = 1;

/* /sys/kernel/tracing/events/syscalls/sys_enter_execve/format */
struct enter {
	u64 common;
	s64 nr;
	u64 args[6];
};

/*
 * Goes on with copying, for at most so many steps.
 *
 * How far it is stands in the map and is read anew in each step: the verifier forgets what it knows of such numbers, and finds
 * all ways through a step to be one. With variables it takes each number of steps times each way.
 */
INLINE void copy(struct words *of, char *text, u32 room, int steps)
{
	volatile struct words *words = of;
	u64 argv = words->argv;
	for (int i = 0; i < steps; i++) {
		if (!words->at) {
			u64 at = 0;
			if (bpf_probe_read_user(&at, sizeof(at), (void *)(argv + 8ull * words->argc))) {
				words->outcome = WORDS_MISSING;
				return;
			}
			if (!at) {
				words->outcome = WORDS_WHOLE;
				return;
			}
			words->at = at;
		}
		u32 len = words->len;
		/* The verifier has to see the very number that was compared used. */
		asm volatile("" : "+r"(len));
		if (len > room) {
			words->outcome = WORDS_FULL;
			return;
		}
		char *to = text + len;
		long n = bpf_probe_read_user_str(to, CHUNK, (void *)words->at);
		if (n < 0) {
			words->outcome = WORDS_MISSING;
			return;
		}
		if (n >= CHUNK) {
			words->len += CHUNK - 1;
			words->at += CHUNK - 1;
			continue;
		}
		if (n == 0) {
			/* The empty word, before 6.13 or so. */
			*to = 0;
			n = 1;
		}
		words->len += n;
		words->argc++;
		words->at = 0;
	}
	words->outcome = WORDS_GO_ON;
}

INLINE int enter_exec(struct enter *ctx, u64 argv)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 place = tid % traced_places;
	struct traced *t = bpf_map_lookup_elem(&traced, &place);
	if (!t)
		return 0;
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	t->tid_again = tid;
	t->words.tid = tid;
	t->words.start = START_TICKS(0, task);
	t->words.exec_id = FIELD(0, task, self_exec_id);
	t->words.argv = argv;
	t->words.at = 0;
	t->words.argc = 0;
	t->words.len = 0;
	t->words.outcome = argv ? WORDS_GO_ON : WORDS_WHOLE;
	t->more = 0;
	if (!argv)
		return 0;
	copy(&t->words, t->text, TEXT, WORDS);
	if (t->words.outcome == WORDS_FULL || t->words.outcome == WORDS_GO_ON) {
		t->more = 1;
		bpf_tail_call(ctx, &stages, 0);
		t->words.outcome = WORDS_FULL;
		t->more = 0;
	}
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_execve")
int traced_execve(struct enter *ctx)
{
	return enter_exec(ctx, ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_enter_execveat")
int traced_execveat(struct enter *ctx)
{
	return enter_exec(ctx, ctx->args[2]);
}

INLINE struct traced_more *more_place(u32 tid)
{
	u32 place = tid % traced_more_places;
	return bpf_map_lookup_elem(&traced_more, &place);
}

INLINE int go_on(struct enter *ctx, struct traced_more *m)
{
	copy(&m->words, m->text, MORE_TEXT, MORE_WORDS);
	if (m->words.outcome == WORDS_GO_ON) {
		bpf_tail_call(ctx, &stages, 1);
		m->words.outcome = WORDS_FULL;
	}
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_execve")
int traced_begin(struct enter *ctx)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 place = tid % traced_places;
	struct traced *t = bpf_map_lookup_elem(&traced, &place);
	struct traced_more *m = more_place(tid);
	if (!t || !m)
		return 0;
	m->tid_again = tid;
	m->words.tid = tid;
	m->words.start = t->words.start;
	m->words.exec_id = t->words.exec_id;
	m->words.argv = t->words.argv;
	m->words.at = 0;
	m->words.argc = 0;
	m->words.len = 0;
	return go_on(ctx, m);
}

SEC("tracepoint/syscalls/sys_enter_execve")
int traced_go_on(struct enter *ctx)
{
	struct traced_more *m = more_place(bpf_get_current_pid_tgid());
	return m ? go_on(ctx, m) : 0;
}
