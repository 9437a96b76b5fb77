//! What a listener has to read and that answers never: who reads it may wait for ever, and nobody else does.

mod support;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only};
use testkit::{Bundle, Process, Runtime, Scratch, Task, need, skip, unique_id, wait_until, watchdog};

const DEADLINE: Duration = Duration::from_secs(1);

/// A child that executes a file with an argument in a page that userfaultfd(2) never fills.
struct Caller(Process);

impl Caller {
    fn executes(file: &Path) -> io::Result<Caller> {
        let file = CString::new(file.as_os_str().as_bytes())?;
        let create = c"create";
        // SAFETY: the child makes system calls only, on what was made before; it ends by exec or _exit.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: as above.
            0 => unsafe {
                let page = never_filled();
                let argv = [file.as_ptr(), create.as_ptr(), page, std::ptr::null()];
                if !page.is_null() {
                    libc::execve(file.as_ptr(), argv.as_ptr(), [std::ptr::null()].as_ptr());
                }
                libc::_exit(125)
            },
            pid => Ok(Caller(Process(pid))),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.0.kill(libc::SIGKILL);
        // SAFETY: a child of ours; nobody asks for its status.
        unsafe { libc::waitpid(self.0.0, std::ptr::null_mut(), 0) };
    }
}

/// The address of a page whoever reads of which sleeps until somebody fills it; null where there is no such thing.
///
/// # Safety
/// The descriptor of the page's userfaultfd stays open, in a process that must be there for this alone.
unsafe fn never_filled() -> *const libc::c_char {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    #[repr(C)]
    struct Register {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }
    // <linux/userfaultfd.h>: _IOWR(0xaa, 0x3f, 24 bytes), _IOWR(0xaa, 0x00, 32 bytes), UFFDIO_REGISTER_MODE_MISSING.
    const UFFD_API: u64 = 0xaa;
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
    const MISSING: u64 = 1;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a mapping of its own, and structures of ours that outlive the calls.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        let mut register = Register { start: page as u64, len: 4096, mode: MISSING, ioctls: 0 };
        let ready = fd >= 0
            && page != libc::MAP_FAILED
            && libc::ioctl(fd, UFFDIO_API as _, &raw mut api) == 0
            && libc::ioctl(fd, UFFDIO_REGISTER as _, &raw mut register) == 0;
        if ready { page as *const libc::c_char } else { std::ptr::null() }
    }
}

/// Kernels before 6.8 read the arguments before they open the file: the caller sleeps there, and is never held.
fn opens_first() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    Ok(version.context("no version")? >= (6, 8))
}

/// The kernel lets nobody wait for another process's userfaultfd: it is an error at once (seen on 6.18).
#[test]
fn memory_that_is_never_filled_is_told_as_lost_or_held_till_the_deadline() -> Result<()> {
    need!(Root, Runc, Busybox);
    if !opens_first()? {
        skip!("this kernel reads the arguments before it opens the file (Linux 6.8 opens first)");
    }
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::start(only([runtime.path()]).deadline(DEADLINE), |_: &ContainerEvent| ())?;
    let caller = Caller::executes(&runtime.path())?;
    let lost = lost(&listener, 1)?;
    ensure!(lost[0].contains("memory") || lost[0].contains("let go unread"), "{lost:?}");
    wait_until("it goes on", PATIENCE, || {
        caller.0.waits_in().filter(|function| !function.contains("fanotify")).map(drop)
    })
    .context("its memory has no page that is never filled: CONFIG_USERFAULTFD?")?;
    is_told(&listener, &runtime)?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_bundle_on_a_file_system_that_answers_never_costs_its_container_the_deadline() -> Result<()> {
    const COUNT: usize = 3;
    need!(Root, Runc, Busybox);
    let Ok(server) = File::options().read(true).write(true).open("/dev/fuse") else {
        skip!("/dev/fuse cannot be opened: there is no FUSE here");
    };
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::start(only([runtime.path()]).deadline(DEADLINE), |_: &ContainerEvent| ())?;
    let dead = Scratch::new()?;
    std::thread::scope(|scope| -> Result<()> {
        // Dropped before the threads are waited for, also where something fails: then all that wait for it get an error.
        let server = server;
        // More than there are threads when it is quiet.
        let callers: Vec<_> = (0..COUNT)
            .map(|n| {
                let mut command = runtime.command(["create", "--bundle"]);
                command.arg(dead.join("bundle")).arg(unique_id(&format!("dead{n}")));
                mounts(&mut command, dead.path(), server.as_raw_fd());
                scope.spawn(move || Task::spawn(&mut command)?.wait(LIMIT))
            })
            .collect();
        wait_until("all are held", PATIENCE, || {
            let held = |process: &Process| process.waits_in().is_some_and(|it| it.contains("fanotify"));
            (Process::me().children().iter().filter(|it| held(it)).count() == COUNT).then_some(())
        })?;
        // Others are held, told and answered meanwhile.
        is_told(&listener, &runtime)?;
        let lost = lost(&listener, COUNT)?;
        ensure!(lost.iter().all(|lost| lost.contains("let go unread") && lost.contains("1s")), "{lost:?}");
        is_told(&listener, &runtime)?;
        drop(server);
        for caller in callers {
            let output = caller.join().ok().context("it panicked")??;
            ensure!(!output.status.success(), "{output:?}");
        }
        Ok(())
    })?;
    // Now that it answers, with an error, what it was is told after all.
    listener.wait_for("they are told, as not held", |records| {
        let of =
            |kind| records.iter().filter(move |r| r.event.id().starts_with("dead") && r.event.kind() == kind);
        let created = of(EventKind::PreCreate).filter(|record| !record.event.held()).count();
        (created == COUNT && of(EventKind::Deleted).count() == COUNT).then_some(())
    })?;
    listener.wait_idle()?;
    is_told(&listener, &runtime)?;
    listener.close()?;
    Ok(())
}

/// Has the process mount a file system that nobody serves, in a mount namespace of its own.
fn mounts(command: &mut Command, at: &Path, server: RawFd) {
    let at = CString::new(at.as_os_str().as_bytes()).expect("no NUL");
    let options = CString::new(format!("fd={server},rootmode=40000,user_id=0,group_id=0")).expect("no NUL");
    let mount = move || {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let none = std::ptr::null();
        // SAFETY: strings that outlive the calls.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
                && libc::mount(c"dead".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
                    == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(mount) };
}

/// The details of what was lost, when it is that many.
fn lost(listener: &Listener, count: usize) -> Result<Vec<String>> {
    listener.wait_for("what is lost", |records| {
        let lost = records.iter().filter(|record| record.event.kind() == EventKind::Lost);
        let lost: Vec<String> = lost.filter_map(|it| it.event.detail().map(str::to_owned)).collect();
        (lost.len() >= count).then_some(lost)
    })
}

/// A container that is well is held, told and answered.
fn is_told(listener: &Listener, runtime: &Runtime) -> Result<()> {
    let bundle = Bundle::builder(unique_id("well")).args(["/bin/true"]).build()?;
    ensure!(runtime.run(&bundle)?.code() == Some(0));
    let told = listener.wait(bundle.id(), &WHOLE_LIFE)?;
    let late = told.iter().take(3).find(|record| {
        record.answer.as_ref().is_none_or(|answer| answer.timed_out || answer.held_for >= DEADLINE)
    });
    ensure!(late.is_none(), "{}", listener.text());
    Ok(())
}
