//! An event is answered once, and the exec does what the answer says.

use std::io::Read;
use std::thread;

use fanotify::{Class, Denied, Group, InodeId, PermissionEvent};

use crate::harness::{Program, Running, Watchdog, can_run, held, skip};

fn answer(answer: impl FnOnce(PermissionEvent)) -> i32 {
    let program = Program::new();
    let group = Group::new().expect("group");
    let _mark = group.mark(&program.path).expect("mark");
    let running = program.start();
    let event = held(&group);
    running.until_held();
    answer(event);
    running.end()
}

#[test]
fn allow_lets_the_exec_go_on() {
    if can_run("allow_lets_the_exec_go_on") {
        let _watchdog = Watchdog::new();
        assert_eq!(answer(|event| event.allow().expect("allow")), 0);
    }
}

#[test]
fn deny_fails_the_exec_with_eperm() {
    if can_run("deny_fails_the_exec_with_eperm") {
        let _watchdog = Watchdog::new();
        assert_eq!(answer(|event| event.deny().expect("deny")), libc::EPERM);
    }
}

#[test]
fn dropping_allows() {
    if can_run("dropping_allows") {
        let _watchdog = Watchdog::new();
        assert_eq!(answer(drop), 0);
    }
}

#[test]
fn another_thread_may_answer() {
    if can_run("another_thread_may_answer") {
        let _watchdog = Watchdog::new();
        let code = answer(|event| thread::spawn(|| event.deny()).join().expect("thread").expect("deny"));
        assert_eq!(code, libc::EPERM);
    }
}

#[test]
fn an_event_says_who_and_which_file() {
    if !can_run("an_event_says_who_and_which_file") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Group::new().expect("group");
    let mark = group.mark(&program.path).expect("mark");
    let running = program.start();
    let event = held(&group);
    assert_eq!(event.task(), running.pid);
    assert_eq!(event.inode().expect("inode"), mark.inode());
    assert_eq!(InodeId::of(event.file()).expect("inode"), mark.inode());
    let mut start = [0; 4];
    let mut file = std::fs::File::from(event.file().try_clone_to_owned().expect("clone"));
    file.read_exact(&mut start).expect("read");
    assert_eq!(&start, b"\x7fELF");
    event.allow().expect("allow");
    assert_eq!(running.end(), 0);
}

#[test]
fn an_interpreter_is_executed_too() {
    if !can_run("an_interpreter_is_executed_too") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let script = program.folder.path().join("script");
    Program::write_text(&script, &format!("#!{}\n", program.path.display()));
    let group = Group::new().expect("group");
    let mark = group.mark(&program.path).expect("mark");
    let running = Running::exec(&script);
    let event = held(&group);
    assert_eq!((event.task(), event.inode().expect("inode")), (running.pid, mark.inode()));
    event.deny().expect("deny");
    assert_eq!(running.end(), libc::EPERM);
}

/// What `execve` failed with, and what `deny_with_errno` said.
fn deny_with(class: Class, errno: i32) -> (i32, Denied) {
    let program = Program::new();
    let group = Group::builder().class(class).build().expect("group");
    let _mark = group.mark(&program.path).expect("mark");
    let running = program.start();
    let denied = held(&group).deny_with_errno(errno).expect("deny");
    (running.end(), denied)
}

#[test]
fn an_errno_of_ones_own() {
    if !can_run("an_errno_of_ones_own") {
        return;
    }
    let _watchdog = Watchdog::new();
    if kernel() < (6, 13) {
        skip("an_errno_of_ones_own", "needs Linux 6.13; what is tested is the plain denial instead");
        assert_eq!(deny_with(Class::PreContent, libc::EBUSY), (libc::EPERM, Denied::Plain));
        return;
    }
    for errno in [libc::EIO, libc::EBUSY, libc::ETXTBSY, libc::EAGAIN, libc::ENOSPC, libc::EDQUOT] {
        assert_eq!(deny_with(Class::PreContent, errno), (errno, Denied::WithErrno));
    }
}

#[test]
fn an_errno_that_the_kernel_does_not_take_is_a_plain_denial() {
    if !can_run("an_errno_that_the_kernel_does_not_take_is_a_plain_denial") {
        return;
    }
    let _watchdog = Watchdog::new();
    for errno in [libc::ENOENT, 0, -1, 256, i32::MAX] {
        assert_eq!(deny_with(Class::PreContent, errno), (libc::EPERM, Denied::Plain), "{errno}");
    }
    assert_eq!(deny_with(Class::Content, libc::EBUSY), (libc::EPERM, Denied::Plain));
}

fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}
