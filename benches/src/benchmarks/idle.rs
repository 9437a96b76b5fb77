//! An unrelated program and a system call, while a listener waits for something else.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::{Context, rows};
use crate::listener::Arm;
use crate::load;
use crate::result::Row;
use crate::stats::Samples;

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let arms = [
        Arm::None,
        Arm::NoneAgain,
        Arm::Floor,
        Arm::hook("containerhook, as by default (bpf exits, exec watch)", &["--exec-watch"]),
        Arm::hook("containerhook, bpf exits", &["--exits", "bpf"]),
        Arm::hook("containerhook, pidfd exits", &["--exits", "pidfd"]),
        Arm::hook("containerhook, pidfd-info exits", &["--exits", "pidfd-info"]),
        Arm::hook("containerhook, arguments by the look-up", &["--capture", "lookup"]),
        Arm::hook("containerhook, arguments by the tracepoint", &["--capture", "tracepoint"]),
    ];
    let (execs, calls) = (ctx.pick(100, 300), 200_000);
    // The system calls are measured in the same blocks as the execs, and kept apart.
    let mut system_calls = vec![Samples::default(); arms.len()];
    let marked = [ctx.runtime.as_path()];
    let samples = ctx.rounds(ctx.pick(6, 30), &arms, &marked, |arm, _| {
        std::thread::sleep(Duration::from_millis(20));
        let mut command = Command::new(&ctx.plain);
        for _ in 0..20 {
            load::timed(&mut command)?;
        }
        let found = (0..execs).map(|_| load::timed(&mut command)).collect::<Result<Vec<f64>>>()?;
        let at = arms.iter().position(|other| other == arm).unwrap_or_default();
        system_calls[at].0.push((0..5).map(|_| getppid(calls)).collect());
        Ok(found)
    })?;
    let mut found = rows("exec and exit of an unrelated program", "µs", &arms, &samples);
    found.extend(rows("getppid", "ns", &arms, &system_calls));
    Ok(found)
}

/// Nanoseconds for one call.
fn getppid(calls: u32) -> f64 {
    let begin = Instant::now();
    for _ in 0..calls {
        // SAFETY: it takes nothing and cannot fail. The C library's own may remember its answer.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    begin.elapsed().as_nanos() as f64 / f64::from(calls)
}
