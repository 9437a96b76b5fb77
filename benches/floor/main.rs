//! The floor: what one thread needs at the least to hold an execution and let it go.
//!
//! `allow`: read one event, allow. `work`: before that, read what containerhook reads (arguments, identity, root, working
//! directory, `config.json`) and mark the entrypoint, on the one thread, believing every word: no bound, no
//! privilege check, no handler. What containerhook adds to `work` is hand-overs between threads and care.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use benches::protocol::{self, Stamps};

fn main() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let mode = words.next().unwrap_or_default();
    let works = match mode.to_str() {
        Some("allow") => false,
        Some("work") => true,
        _ => bail!("usage: bench-floor allow|work [--stamps] FILE…"),
    };
    let (options, files): (Vec<_>, Vec<_>) = words.partition(|word| word == "--stamps");
    let group = Group::new()?;
    let mut marked = Vec::new();
    for file in &files {
        group.mark(Path::new(file)).with_context(|| format!("marking {}", file.display()))?;
        marked.push((std::fs::metadata(file)?.ino(), file.to_string_lossy().into_owned()));
    }
    let stamps = (!options.is_empty()).then(|| Arc::new(Stamps::default()));
    let theirs = stamps.clone();
    std::thread::spawn(move || {
        // The stamp is of the answer's moment: what a handler would see.
        loop {
            let Ok(event) = group.read() else { continue };
            if works && let Err(error) = work(&group, &event) {
                eprintln!("bench-floor: {error:#}");
            }
            if let Some(stamps) = &theirs {
                let inode = File::from(event.file.try_clone().expect("a descriptor is free")).metadata();
                let inode = inode.map_or(0, |found| found.ino());
                let name = marked.iter().find(|(known, _)| *known == inode);
                stamps.push("exec", name.map_or("?", |(_, name)| name));
            }
            group.allow(&event);
        }
    });
    protocol::serve(|_| stamps.as_ref().map(|stamps| stamps.drain()).unwrap_or_default());
    Ok(())
}

struct Event {
    file: OwnedFd,
    task: i32,
}

struct Group(OwnedFd);

impl Group {
    fn new() -> Result<Group> {
        let flags = libc::FAN_CLASS_CONTENT
            | libc::FAN_REPORT_TID
            | libc::FAN_CLOEXEC
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let file_flags = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as u32;
        // SAFETY: no pointers; a descriptor that is returned is new, and ours.
        let group = unsafe {
            let fd = libc::fanotify_init(flags, file_flags);
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("fanotify_init");
            }
            Group(OwnedFd::from_raw_fd(fd))
        };
        Ok(group)
    }

    fn mark(&self, path: &Path) -> Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let (add, mask) = (libc::FAN_MARK_ADD, libc::FAN_OPEN_EXEC_PERM);
        // SAFETY: the path is a string that lives through the call.
        let done =
            unsafe { libc::fanotify_mark(self.0.as_raw_fd(), add, mask, libc::AT_FDCWD, path.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("fanotify_mark") }
    }

    fn read(&self) -> Result<Event> {
        let mut metadata = std::mem::MaybeUninit::<libc::fanotify_event_metadata>::zeroed();
        let size = size_of::<libc::fanotify_event_metadata>();
        // SAFETY: the buffer has the size of one event, and a descriptor in it is new, and ours.
        unsafe {
            let got = libc::read(self.0.as_raw_fd(), metadata.as_mut_ptr().cast(), size);
            if got != size as isize {
                return Err(io::Error::last_os_error()).context("reading an event");
            }
            let event = metadata.assume_init();
            if event.fd < 0 {
                bail!("the queue ran over");
            }
            Ok(Event { file: OwnedFd::from_raw_fd(event.fd), task: event.pid })
        }
    }

    fn allow(&self, event: &Event) {
        let answer = libc::fanotify_response { fd: event.file.as_raw_fd(), response: libc::FAN_ALLOW };
        // SAFETY: the answer lives through the call.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const answer).cast(), size_of_val(&answer)) };
    }
}

/// What `create` needs to know, read as plainly as can be.
fn work(group: &Group, event: &Event) -> Result<()> {
    let task = event.task;
    let argv = arguments(task)?;
    let status = std::fs::read_to_string(format!("/proc/{task}/status"))?;
    let stat = std::fs::read_to_string(format!("/proc/{task}/stat"))?;
    let _identity = (status.find("Uid:"), stat.rfind(')'));
    let root = File::open(format!("/proc/{task}/root"))?;
    let _cwd = File::open(format!("/proc/{task}/cwd"))?;
    let Some(at) = argv.iter().position(|word| word == b"--bundle") else { return Ok(()) };
    let bundle = argv.get(at + 1).context("no bundle")?;
    // As seen from the caller's root.
    let bundle = PathBuf::from(std::ffi::OsStr::from_bytes(bundle));
    let bundle = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()))
        .join(bundle.strip_prefix("/").unwrap_or(&bundle));
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    let path = Path::new(config["root"]["path"].as_str().context("no root")?);
    let entry = config["process"]["args"][0].as_str().context("no entrypoint")?;
    group.mark(&path.join(entry.trim_start_matches('/')))
}

/// The arguments of the execve that the task sleeps in.
fn arguments(task: i32) -> Result<Vec<Vec<u8>>> {
    let call = loop {
        let text = std::fs::read_to_string(format!("/proc/{task}/syscall"))?;
        if !text.starts_with("running") {
            break text;
        }
        std::thread::yield_now();
    };
    let word = call.split(' ').nth(2).context("no system call")?;
    let mut at = u64::from_str_radix(word.trim_start_matches("0x"), 16)?;
    let mut arguments = Vec::new();
    loop {
        let mut pointer = [0; 8];
        read_memory(task, at, &mut pointer)?;
        let pointer = u64::from_ne_bytes(pointer);
        if pointer == 0 {
            return Ok(arguments);
        }
        let mut bytes = [0; 256];
        let got = read_memory(task, pointer, &mut bytes)?;
        let end = bytes[..got].iter().position(|byte| *byte == 0).context("a long argument")?;
        arguments.push(bytes[..end].to_vec());
        at += 8;
    }
}

fn read_memory(task: i32, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: at as usize as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` describes `into`; the kernel checks the address of the other process.
    let got = unsafe { libc::process_vm_readv(task, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
