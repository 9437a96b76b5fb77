//! Real processes, each backend. What `wait(2)` says is the truth that every report is compared with.

use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::Mutex;

use super::*;
use crate::bpf::testing::{skip, skipped};

const BACKENDS: [Choice; 3] = [Choice::Bpf, Choice::PidfdInfo, Choice::Pidfd];
/// For an emulated machine, too.
const LIMIT: Duration = Duration::from_secs(60);

/// The backend, where this kernel and user have it.
fn open(test: &str, choice: Choice) -> Option<Exits> {
    open_with(test, choice, Loader::new())
}

fn open_with(test: &str, choice: Choice, mut loader: Loader) -> Option<Exits> {
    match Exits::open(choice, &mut loader) {
        Ok((exits, warnings)) => {
            assert_eq!(warnings, Vec::<String>::new(), "a forced backend works or is refused");
            Some(exits)
        }
        Err(error) => {
            skip(&format!("{test} ({choice:?})"), &error.to_string());
            None
        }
    }
}

/// A child that waits for a byte before it does what it was made for.
struct Child {
    pid: i32,
    go: OwnedFd,
    reaped: bool,
}

/// What the child's second half is.
type Act = fn(i32) -> !;

impl Child {
    fn new(act: Act, argument: i32) -> Child {
        Child::with_pid(act, argument, None)
    }

    /// With a pid of our choice (`set_tid`, Linux 5.5).
    fn with_pid(act: Act, argument: i32, set_tid: Option<i32>) -> Child {
        allow_many_descriptors();
        let mut pipe = [0; 2];
        let tids = [set_tid.unwrap_or(0)];
        let mut args = [0u64; 10]; // struct clone_args
        args[4] = libc::SIGCHLD as u64;
        if set_tid.is_some() {
            args[8] = tids.as_ptr() as u64;
            args[9] = 1;
        }
        // SAFETY: the child is a copy of its own and calls nothing but system calls.
        unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let pid = libc::syscall(libc::SYS_clone3, args.as_ptr(), 80) as i32;
            assert!(pid >= 0, "{}", io::Error::last_os_error());
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                GO.store(pipe[0], std::sync::atomic::Ordering::Relaxed);
                act(argument);
            }
            libc::close(pipe[0]);
            Child { pid, go: OwnedFd::from_raw_fd(pipe[1]), reaped: false }
        }
    }

    fn go(&self) {
        // SAFETY: one readable byte.
        assert_eq!(unsafe { libc::write(self.go.as_raw_fd(), [1u8].as_ptr().cast(), 1) }, 1);
    }

    fn kill(&self, signal: i32) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.pid, signal) };
    }

    fn reap(&mut self) -> ExitStatus {
        let mut status = 0;
        // SAFETY: `status` is writable.
        assert_eq!(unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) }, self.pid);
        self.reaped = true;
        ExitStatus::from_raw(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill(libc::SIGKILL);
            self.reap();
        }
    }
}

/// A thousand children have a thousand pipes, and pidfds.
fn allow_many_descriptors() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is writable, and then readable.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    });
}

/// In a child: the pipe to wait on.
static GO: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);

fn wait_for_go() {
    let mut byte = 0u8;
    // SAFETY: one writable byte.
    unsafe { libc::read(GO.load(std::sync::atomic::Ordering::Relaxed), (&raw mut byte).cast(), 1) };
}

fn exit_group(code: i32) -> ! {
    // SAFETY: ends this process and runs nothing more of it.
    unsafe { libc::_exit(code) }
}

fn act_exit(code: i32) -> ! {
    wait_for_go();
    exit_group(code)
}

fn act_exit_now(code: i32) -> ! {
    exit_group(code)
}

fn act_raise(signal: i32) -> ! {
    wait_for_go();
    // SAFETY: plain system calls on ourselves.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::syscall(libc::SYS_kill, libc::getpid(), signal);
    }
    loop {
        std::hint::spin_loop();
    }
}

fn act_dump_core(signal: i32) -> ! {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain system calls on ourselves.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        libc::chdir(CORE_DIR.as_ptr());
    }
    act_raise(signal)
}

const CORE_DIR: &std::ffi::CStr = c"/tmp";

/// The leader leaves at once with 3; the other thread waits, and then ends the process (at least 0) or only itself.
fn act_leader_leaves(code: i32) -> ! {
    const STACK: usize = 64 << 10;
    extern "C" fn other(code: *mut libc::c_void) -> i32 {
        let code = code as isize as i32;
        wait_for_go();
        if code >= 0 {
            exit_group(code)
        }
        // SAFETY: ends this thread.
        unsafe { libc::syscall(libc::SYS_exit, -code) };
        0
    }
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // By the system calls alone: this process was forked while other threads held locks, those of malloc and of
    // pthread_create among them.
    // SAFETY: the mapping is the new thread's stack and nobody else's; `other` takes an integer, and has the thread-local
    // storage of the leader, who does not come back from SYS_exit.
    unsafe {
        let stack = libc::mmap(std::ptr::null_mut(), STACK, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
        if stack == libc::MAP_FAILED {
            exit_group(99);
        }
        if libc::clone(other, stack.byte_add(STACK), thread, code as isize as *mut libc::c_void) < 0 {
            exit_group(98);
        }
        libc::syscall(libc::SYS_exit, 3);
    }
    loop {
        std::hint::spin_loop();
    }
}

fn poll(exits: &Exits, timeout: Duration) -> bool {
    let mut fd = libc::pollfd { fd: exits.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, writable.
    unsafe { libc::poll(&raw mut fd, 1, timeout.as_millis() as i32) > 0 }
}

/// As the engine does it: sleep until there is something or a deadline has come.
fn collect(exits: &mut Exits, count: usize) -> Vec<Ended> {
    let start = Instant::now();
    let mut out = Vec::new();
    while out.len() < count {
        if start.elapsed() >= LIMIT {
            let missing: Vec<_> = exits
                .watched
                .iter()
                .map(|(&pid, watched)| {
                    let process = Process { pid, start_time: watched.start_time };
                    let entry = exits.records.as_mut().map(|records| records.explain(process));
                    (process, watched.pidfd.is_some(), exits.proc.stat(pid), entry)
                })
                .collect();
            panic!("{} of {count} reported, missing {missing:?}", out.len());
        }
        let until = exits.next_deadline().map_or(LIMIT, |at| at.saturating_duration_since(Instant::now()));
        poll(exits, until.min(LIMIT) + Duration::from_millis(1));
        exits.drain(&mut out, false);
    }
    assert_eq!(out.len(), count, "none twice");
    out
}

fn assert_silent(exits: &mut Exits, for_: Duration) {
    let mut out = Vec::new();
    let until = Instant::now() + for_;
    while Instant::now() < until {
        poll(exits, until.saturating_duration_since(Instant::now()));
        exits.drain(&mut out, false);
        assert_eq!(out, [], "nothing more is reported");
    }
}

/// Each child ends, is reported once, and as wait(2) says.
fn watch_and_compare(exits: &mut Exits, mut children: Vec<Child>) {
    let before = Instant::now();
    let mut watched = HashMap::new();
    for (i, child) in children.iter().enumerate() {
        let process = exits.watch(child.pid).unwrap();
        assert_eq!(process.pid, child.pid);
        assert_eq!(exits.watch(child.pid).unwrap(), process, "the same watch");
        watched.insert(process, i);
    }
    children.iter().for_each(Child::go);
    for ended in collect(exits, children.len()) {
        let child = &mut children[watched.remove(&ended.process).expect("one of ours, once")];
        // Not reaped yet, so each backend can know.
        assert_eq!(ended.status, Some(child.reap()), "{:?}", ended.process);
        assert!(ended.at >= before && ended.at <= Instant::now());
    }
    assert_eq!(exits.len(), 0);
    assert_silent(exits, Duration::from_millis(20));
}

#[test]
fn every_exit_code_is_told() {
    for choice in BACKENDS {
        let Some(mut exits) = open("every_exit_code_is_told", choice) else { continue };
        watch_and_compare(&mut exits, (0..256).map(|code| Child::new(act_exit, code)).collect());
    }
}

#[test]
fn the_signal_that_killed_is_told() {
    let signals = [libc::SIGKILL, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE, libc::SIGALRM, 64];
    for choice in BACKENDS {
        let Some(mut exits) = open("the_signal_that_killed_is_told", choice) else { continue };
        watch_and_compare(&mut exits, signals.iter().map(|&s| Child::new(act_raise, s)).collect());
    }
}

#[test]
fn a_core_dump_is_told() {
    for choice in BACKENDS {
        let Some(mut exits) = open("a_core_dump_is_told", choice) else { continue };
        let mut child = Child::new(act_dump_core, libc::SIGSEGV);
        let process = exits.watch(child.pid).unwrap();
        child.go();
        let ended = collect(&mut exits, 1);
        let truth = child.reap();
        let _ = fs::remove_file("/tmp/core");
        let _ = fs::remove_file(format!("/tmp/core.{}", child.pid));
        assert_eq!((ended[0].process, ended[0].status), (process, Some(truth)));
        assert_eq!(truth.signal(), Some(libc::SIGSEGV));
        if !truth.core_dumped() {
            skipped(
                &format!("a_core_dump_is_told ({choice:?})"),
                "no core is dumped here (core_pattern, hard limit)",
            );
        }
    }
}

#[test]
fn the_leader_leaving_is_not_the_end() {
    for choice in BACKENDS {
        // 7: the other thread ends the process; -9: it leaves alone, as the last.
        for code in [7, -9] {
            for watch_late in [false, true] {
                let Some(mut exits) = open("the_leader_leaving_is_not_the_end", choice) else { continue };
                let mut child = Child::new(act_leader_leaves, code);
                let early = (!watch_late).then(|| exits.watch(child.pid).unwrap());
                let start = Instant::now();
                while !exits.proc.stat(child.pid).is_some_and(|s| s.is_exiting() && !s.is_dead()) {
                    assert!(start.elapsed() < LIMIT);
                    std::thread::yield_now();
                }
                let process = early.unwrap_or_else(|| exits.watch(child.pid).unwrap());
                assert_silent(&mut exits, Duration::from_millis(50));
                assert!(exits.is_alive(process));
                child.go();
                let ended = collect(&mut exits, 1);
                let truth = child.reap();
                assert_eq!(ended[0].process, process);
                if choice != Choice::Bpf && ended[0].status != Some(truth) {
                    assert_eq!(ended[0].status.unwrap().code(), Some(3), "the leader's own");
                    skipped(
                        "the_leader_leaving_is_not_the_end",
                        "/proc/PID/stat shows the leader's own code here",
                    );
                    continue;
                }
                assert_eq!(ended[0].status, Some(truth));
            }
        }
    }
}

#[test]
fn a_thousand_at_once_are_each_told_once() {
    for choice in BACKENDS {
        let Some(mut exits) = open("a_thousand_at_once_are_each_told_once", choice) else { continue };
        watch_and_compare(&mut exits, (0..1000).map(|i| Child::new(act_exit, i * 7 % 256)).collect());
    }
}

#[test]
fn a_record_needs_no_descriptor_for_each_process() {
    let Some(mut exits) = open("a_record_needs_no_descriptor_for_each_process", Choice::Bpf) else { return };
    let children: Vec<Child> = (0..50).map(|_| Child::new(act_exit, 0)).collect();
    for child in &children {
        exits.watch(child.pid).unwrap();
    }
    assert!(exits.watched.values().all(|watched| watched.pidfd.is_none()));
    assert_eq!(exits.len(), 50);
}

#[test]
fn an_unreaped_zombie_is_told_at_once_and_once() {
    for choice in BACKENDS {
        let Some(mut exits) = open("an_unreaped_zombie_is_told_at_once_and_once", choice) else { continue };
        let mut child = Child::new(act_exit_now, 77);
        while !exits.proc.stat(child.pid).unwrap().is_dead() {
            std::thread::yield_now();
        }
        let process = exits.watch(child.pid).unwrap();
        assert_eq!(exits.watch(child.pid).unwrap(), process);
        assert!(!exits.is_alive(process));
        assert!(poll(&exits, Duration::ZERO), "readable without waiting");
        let ended = collect(&mut exits, 1);
        assert_eq!((ended[0].process, ended[0].status.unwrap().code()), (process, Some(77)));
        assert_silent(&mut exits, Duration::from_millis(10));
        child.reap();
        assert!(matches!(exits.watch(child.pid), Err(WatchError::Gone)));
    }
}

/// A watch that begins while the process is anywhere between its last instruction and its grave.
fn race(choice: Choice, rounds: u32, reap_at_once: bool) {
    race_in(choice, rounds, reap_at_once, false);
}

/// `kept`: the ends of the young are kept, as while a runtime makes a process.
fn race_in(choice: Choice, rounds: u32, reap_at_once: bool, kept: bool) {
    let Some(exits) = open("a_watch_during_exit_is_never_lost", choice) else { return };
    race_with(exits, &format!("{choice:?}"), rounds, reap_at_once, kept);
}

fn race_with(mut exits: Exits, how: &str, rounds: u32, reap_at_once: bool, kept: bool) {
    let runtime = Process { pid: 1, start_time: 0 };
    if kept {
        exits.makes(runtime);
    }
    let (mut told, mut gone, mut unknown) = (0, 0, 0);
    for round in 0..rounds {
        let mut child = Child::new(act_exit_now, (round % 256) as i32);
        let pid = child.pid;
        for _ in 0..(round % 97) * 40 {
            std::hint::spin_loop();
        }
        let watch = |exits: &mut Exits, pid| match exits.watch(pid) {
            Ok(process) => Some((process, collect(exits, 1)[0])),
            Err(WatchError::Gone) => None,
            Err(error) => panic!("{error}"),
        };
        let (seen, truth) = if reap_at_once {
            std::thread::scope(|scope| {
                let reaper = scope.spawn(move || child.reap());
                (watch(&mut exits, pid), reaper.join().unwrap())
            })
        } else {
            (watch(&mut exits, pid), child.reap())
        };
        match seen {
            Some((process, ended)) => {
                told += 1;
                assert_eq!(ended.process, process);
                match ended.status {
                    Some(status) => assert_eq!(status, truth, "round {round}"),
                    None => unknown += 1,
                }
            }
            None => {
                gone += 1;
                let ended = exits.recall(pid, runtime);
                assert_eq!(ended.and_then(|ended| ended.status), kept.then_some(truth), "round {round}");
            }
        }
        assert_eq!(exits.len(), 0);
    }
    assert_silent(&mut exits, Duration::from_millis(20));
    println!(
        "{how}: reaped at once {reap_at_once}: {told} told, {unknown} of them without status, {gone} gone"
    );
    assert!(reap_at_once || gone == 0);
    assert!((reap_at_once && !kept) || unknown == 0);
}

#[test]
fn a_watch_during_exit_is_never_lost() {
    race(Choice::Bpf, 1000, false);
    race(Choice::Bpf, 1000, true);
    race_in(Choice::Bpf, 1000, true, true);
    race(Choice::PidfdInfo, 300, true);
    race(Choice::Pidfd, 300, true);
}

/// One whose pid is known when it is no more, as that of what a runtime executed and left alone.
#[test]
fn an_end_before_its_pid_is_known_is_recalled() {
    let test = "an_end_before_its_pid_is_known_is_recalled";
    let Some(mut exits) = open(test, Choice::Bpf) else { return };
    let runtime = exits.watch(std::process::id() as i32).unwrap();
    let made = |code| {
        let mut child = Child::new(act_exit_now, code);
        let truth = child.reap();
        (child.pid, truth)
    };
    let (unkept, _) = made(1);
    assert_eq!(exits.recall(unkept, runtime), None, "nothing is kept that nobody will ask for");

    // Younger than another runtime that is at work is not young enough.
    let elder = Process { pid: 1, start_time: 1 };
    exits.makes(elder);
    let late = Process { pid: 2, start_time: u64::MAX / 2 };
    exits.makes(late);
    let children: Vec<_> = (0..256).map(made).collect();
    for (pid, truth) in children {
        let before = exits.recall(pid, runtime).expect("it is kept");
        assert_eq!((before.process.pid, before.status), (pid, Some(truth)));
        assert!(before.at <= Instant::now());
        assert_eq!(exits.recall(pid, late), None);
        // Asked to be watched, by its name: its end is told, and how.
        assert!(matches!(exits.watch(pid), Err(WatchError::Gone)));
    }
    exits.has_made(elder);
    let (old, _) = made(3);
    assert_eq!(exits.recall(old, runtime), None, "only the younger than the one that is left");
    exits.has_made(late);
    let (after, _) = made(4);
    assert_eq!(exits.recall(after, runtime), None);
    exits.unwatch(runtime);
    assert_silent(&mut exits, Duration::from_millis(20));
}

/// In another pid namespace than the listener's a process has no pidfd.
fn open_foreign(test: &str, mut loader: Loader) -> Option<Exits> {
    match Exits::open_for(Choice::Auto, &mut loader, &HostProc::pretend_foreign()) {
        Ok((exits, _)) => Some(exits),
        Err(error) => {
            skip(test, &error.to_string());
            None
        }
    }
}

#[test]
fn a_watch_during_exit_is_never_lost_without_pidfds() {
    for reap_at_once in [false, true] {
        let test = "a_watch_during_exit_is_never_lost_without_pidfds";
        let Some(exits) = open_foreign(test, Loader::new()) else { return };
        race_with(exits, "BPF without pidfds", 500, reap_at_once, false);
    }
}

#[test]
fn without_pidfds_nothing_is_half() {
    let test = "without_pidfds_nothing_is_half";
    let foreign = HostProc::pretend_foreign();
    for choice in [Choice::PidfdInfo, Choice::Pidfd] {
        let error = Exits::open_for(choice, &mut Loader::new(), &foreign).err().expect("no pidfd can be had");
        assert!(error.to_string().contains("by BPF only"), "{error}");
    }
    // A table that is full refuses, and does not take a process whose end nobody would tell.
    let Some(mut exits) = open_foreign(test, Loader::new().with_size("watched", 1)) else { return };
    let [mut first, second] = [Child::new(act_exit, 3), Child::new(act_exit, 4)];
    exits.watch(first.pid).unwrap();
    assert!(matches!(exits.watch(second.pid), Err(WatchError::Refused(_))));
    let error = exits.kill(exits_process(first.pid), libc::SIGKILL).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
    first.go();
    let process = exits_process(second.pid);
    let ended = collect(&mut exits, 1);
    assert_eq!(ended[0].status, Some(first.reap()));
    assert_eq!(exits.watch(second.pid).unwrap(), process);
}

fn exits_process(pid: i32) -> Process {
    let start_time = HostProc::default().stat(pid).unwrap().start_time;
    Process { pid, start_time }
}

/// The same for as long as it takes to believe it.
#[test]
#[ignore = "takes minutes"]
fn ten_thousand_watches_during_exit() {
    race(Choice::Bpf, 10_000, false);
    race(Choice::Bpf, 10_000, true);
}

#[test]
fn a_full_ring_loses_nothing() {
    // 4096 bytes hold 128 records.
    let loader = Loader::new().with_size("exits", 4096);
    let Some(mut exits) = open_with("a_full_ring_loses_nothing", Choice::Bpf, loader) else { return };
    let mut children: Vec<Child> = (0..600).map(|i| Child::new(act_exit, i % 256)).collect();
    let mut watched: HashMap<Process, usize> =
        children.iter().enumerate().map(|(i, child)| (exits.watch(child.pid).unwrap(), i)).collect();
    let survivor = Child::new(act_exit, 0);
    exits.watch(survivor.pid).unwrap();
    let truth: Vec<ExitStatus> = children
        .iter_mut()
        .map(|child| {
            child.go();
            child.reap()
        })
        .collect();
    for ended in collect(&mut exits, 600) {
        assert_eq!(ended.status, Some(truth[watched.remove(&ended.process).unwrap()]));
    }
    assert_eq!(exits.len(), 1, "the survivor is still watched");
    assert_silent(&mut exits, Duration::from_millis(20));
    watch_and_compare(&mut exits, vec![survivor]);
}

#[test]
fn what_a_full_table_cannot_hold_gets_a_pidfd() {
    let loader = Loader::new().with_size("watched", 8);
    let test = "what_a_full_table_cannot_hold_gets_a_pidfd";
    let Some(mut exits) = open_with(test, Choice::Bpf, loader) else { return };
    for _ in 0..2 {
        watch_and_compare(&mut exits, (0..40).map(|code| Child::new(act_exit, code)).collect());
    }
    println!("runs that the kernel skipped: {:?}", exits.records.as_ref().unwrap().skipped_runs());
}

/// Tests that choose a pid must not choose the same.
static CHOSEN_PID: Mutex<()> = Mutex::new(());

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let _one = CHOSEN_PID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for choice in BACKENDS {
        let Some(mut exits) = open("a_pid_that_is_used_again_is_another_process", choice) else { continue };
        let mut first = Child::new(act_exit, 11);
        let earlier = exits.watch(first.pid).unwrap();
        // Start times are told in hundredths of a second.
        std::thread::sleep(Duration::from_millis(25));
        first.go();
        first.reap();
        let mut second = Child::with_pid(act_exit, 22, Some(first.pid));
        assert_eq!(second.pid, first.pid);

        // Not drained yet: the end of the first and the watch of the second meet.
        assert!(!exits.is_alive(earlier));
        let error = exits.kill(earlier, libc::SIGKILL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        let later = exits.watch(second.pid).unwrap();
        assert_ne!(earlier, later);
        assert!(exits.is_alive(later));
        let ended = collect(&mut exits, 1);
        assert_eq!(ended[0].process, earlier);
        match (choice, ended[0].status) {
            (Choice::Bpf, status) => assert_eq!(status.and_then(|s| s.code()), Some(11)),
            (_, None) => {}
            (_, Some(status)) => assert_eq!(status.code(), Some(11)),
        }
        assert_silent(&mut exits, Duration::from_millis(20));
        second.go();
        let ended = collect(&mut exits, 1);
        assert_eq!((ended[0].process, ended[0].status), (later, Some(second.reap())));
    }
}

#[test]
fn a_pid_used_again_unwatched_is_not_reported() {
    let _one = CHOSEN_PID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut exits) = open("a_pid_used_again_unwatched_is_not_reported", Choice::Bpf) else { return };
    let mut first = Child::new(act_exit, 1);
    let earlier = exits.watch(first.pid).unwrap();
    // As if the first had ended unseen: its entry in the kernel's table stays.
    std::thread::sleep(Duration::from_millis(25));
    first.go();
    first.reap();
    assert_eq!(collect(&mut exits, 1)[0].process, earlier);
    exits.records.as_mut().unwrap().insert(earlier).unwrap();
    let mut second = Child::with_pid(act_exit, 2, Some(first.pid));
    second.go();
    second.reap();
    assert_silent(&mut exits, Duration::from_millis(50));
}

#[test]
fn an_ended_watch_is_silent() {
    for choice in BACKENDS {
        let Some(mut exits) = open("an_ended_watch_is_silent", choice) else { continue };
        let mut child = Child::new(act_exit, 0);
        let process = exits.watch(child.pid).unwrap();
        exits.unwatch(process);
        exits.unwatch(process);
        assert_eq!(exits.len(), 0);
        child.go();
        child.reap();
        assert_silent(&mut exits, Duration::from_millis(30));
    }
}

#[test]
fn a_kill_reaches_the_one_that_was_meant() {
    for choice in BACKENDS {
        let Some(mut exits) = open("a_kill_reaches_the_one_that_was_meant", choice) else { continue };
        let mut child = Child::new(act_exit, 0);
        let process = exits.watch(child.pid).unwrap();
        let other = Process { start_time: process.start_time + 1, ..process };
        assert_eq!(exits.kill(other, libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(!exits.is_alive(other));
        exits.kill(process, libc::SIGKILL).unwrap();
        let ended = collect(&mut exits, 1);
        assert_eq!(ended[0].status.unwrap().signal(), Some(libc::SIGKILL));
        child.reap();
        assert_eq!(exits.kill(process, libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}

#[test]
fn a_status_that_is_shown_only_after_the_reaping_is_waited_for_but_not_long() {
    let test = "a_status_that_is_shown_only_after_the_reaping_is_waited_for_but_not_long";
    let Some(mut exits) = open(test, Choice::PidfdInfo) else { return };
    exits.proc.hide_exit_codes();

    // Reaped while we wait: the hang-up tells, before the deadline. Code 0, which a hidden code looks like.
    let mut child = Child::new(act_exit, 0);
    exits.watch(child.pid).unwrap();
    child.go();
    let mut out = Vec::new();
    while exits.next_deadline().is_none() {
        assert!(poll(&exits, LIMIT));
        exits.drain(&mut out, false);
    }
    assert_eq!(out, []);
    assert!(!poll(&exits, Duration::ZERO), "no spinning on a zombie");
    child.reap();
    assert!(poll(&exits, LIMIT), "the hang-up wakes");
    exits.drain(&mut out, false);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].status.unwrap().code(), Some(0));
    assert_eq!(exits.next_deadline(), None);

    // Never reaped: told at the deadline, unknown.
    let child = Child::new(act_exit, 0);
    exits.watch(child.pid).unwrap();
    child.go();
    let ended = collect(&mut exits, 1);
    assert_eq!(ended[0].status, None);
    assert_eq!(exits.next_deadline(), None);
}

#[test]
fn without_bpf_the_next_best_is_taken_and_said() {
    let mut loader = Loader::new().with_size("watched", 0);
    let (exits, warnings) = Exits::open(Choice::Auto, &mut loader).unwrap();
    assert_ne!(exits.backend(), Backend::Bpf);
    assert!(warnings[0].contains("BPF"), "{warnings:?}");
    assert!(matches!(Exits::open(Choice::Bpf, &mut loader), Err(OpenError::Bpf(_))));
}

#[test]
fn a_pid_that_cannot_be_is_gone() {
    for choice in BACKENDS {
        let Some(mut exits) = open("a_pid_that_cannot_be_is_gone", choice) else { continue };
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(matches!(exits.watch(pid), Err(WatchError::Gone)), "{pid}");
        }
    }
}

/// What ten thousand watched processes cost. Prints; run it with
/// `cargo test --release -p containerhook --lib what_ten_thousand_watches_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_ten_thousand_watches_cost() {
    let status = |name: &str| {
        let text = fs::read_to_string("/proc/self/status").unwrap();
        text.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
    };
    let kernel = || {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        ["SUnreclaim:", "VmallocUsed:"]
            .map(|name| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned())
            .join(" ")
    };
    println!("before: {} {}", status("VmRSS"), kernel());
    let mut exits = open("what_ten_thousand_watches_cost", Choice::Bpf).unwrap();
    println!("open: {} {} {}", status("VmRSS"), status("VmHWM"), kernel());
    // The table needs no processes: names are enough for the figures.
    let start = Instant::now();
    let records = exits.records.as_mut().unwrap();
    for pid in 5_000_000..5_010_000 {
        let process = Process { pid, start_time: 1 };
        records.insert(process).unwrap();
        exits
            .watched
            .insert(pid, Watched { start_time: 1, pidfd: None, deadline: None, pause: LOOK_AGAIN[0] });
    }
    println!("10,000 watched in {:?}: {} {}", start.elapsed(), status("VmRSS"), kernel());
    let cpu = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    cpu();
    let before = cpu();
    assert!(!poll(&exits, Duration::from_secs(2)), "nothing happens");
    println!("cpu time while nothing happened for 2 s: {} us", (cpu() - before) / 1000);
    assert_eq!(exits.len(), 10_000);
}
