//! Running out of descriptors neither denies nor hangs an exec.

use std::fs;

use crate::harness::{Program, Running, Watchdog, can_run, eventually, skip};
use crate::listener::Listener;

#[test]
fn a_full_descriptor_table_neither_denies_nor_hangs() {
    if !can_run("a_full_descriptor_table_neither_denies_nor_hangs") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let mut listener = Listener::start("full", &program.path);
    listener.expect("ready");

    let mut running: Vec<_> = (0..20).map(|_| program.start()).collect();
    running.iter().for_each(Running::until_held);
    listener.go_on();
    assert_eq!(listener.expect("full"), "held=1 passed=19 other=0");
    let mut codes = Vec::new();
    eventually("all but the held one go on", || {
        running.retain_mut(|one| match one.ended() {
            Some(code) => {
                codes.push(code);
                false
            }
            None => true,
        });
        (running.len() == 1).then_some(())
    });
    assert_eq!(codes, [0; 19]);
    running[0].until_held();

    let next = program.start();
    next.until_held();
    listener.go_on();
    assert_eq!(listener.expect("room"), "held=1 passed=0 other=0");
    assert_eq!((running.remove(0).end(), next.end()), (0, 0));

    let many: Vec<_> = (0..20).map(|_| program.start()).collect();
    many.iter().for_each(Running::until_held);
    listener.go_on();
    assert_eq!(listener.expect("free"), "held=20 passed=0 other=0");
    for one in many {
        assert_eq!(one.end(), 0);
    }
}

#[test]
fn a_table_that_other_threads_fill_denies_nothing() {
    if !can_run("a_table_that_other_threads_fill_denies_nothing") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let mut listener = Listener::start("crowd", &program.path);
    listener.expect("ready");
    for _ in 0..300 {
        assert_eq!(program.start().end(), 0);
    }
    assert_eq!(listener.expect("crowd"), "held=0 passed=300 other=0");
    // Where there is room again they are held again.
    assert_eq!(program.start().end(), 0);
    assert_eq!(listener.expect("alone"), "held=1 passed=0 other=0");
}

/// The fact that the reader is built around. Where this fails, the kernel has become kinder.
#[test]
fn the_kernel_itself_denies_where_it_has_no_descriptor_to_give() {
    if !can_run("the_kernel_itself_denies_where_it_has_no_descriptor_to_give") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let mut listener = Listener::start("kernel", &program.path);
    listener.expect("ready");
    let running = program.start();
    assert_eq!(listener.expect("errno"), libc::EMFILE.to_string());
    assert_eq!(running.end(), libc::EPERM);
}

#[test]
fn the_limit_of_the_system_does_not_bind_a_privileged_reader() {
    const TEST: &str = "the_limit_of_the_system_does_not_bind_a_privileged_reader";
    const LIMIT: &str = "/proc/sys/fs/file-max";
    if !can_run(TEST) {
        return;
    }
    if std::env::var_os("FANOTIFY_TEST_ENFILE").is_none() {
        return skip(
            TEST,
            "lowers fs.file-max of the whole machine for a moment; set FANOTIFY_TEST_ENFILE to run it",
        );
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let mut listener = Listener::start("enfile", &program.path);
    listener.expect("ready");
    let before = fs::read_to_string(LIMIT).expect("file-max");
    fs::write(LIMIT, "1").expect("lower file-max");
    let running = program.start();
    let said = listener.expect("");
    fs::write(LIMIT, before).expect("put file-max back");
    assert_eq!(said, "held=1 passed=0 other=0");
    assert_eq!(running.end(), 0);
}
