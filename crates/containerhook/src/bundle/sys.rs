//! The few system calls the bundle code needs and the standard library has not: `openat2`, `statx` of a
//! descriptor, and the way from an `O_PATH` descriptor to one that reads.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How often a look-up is tried again when the kernel answers `EAGAIN`: with `RESOLVE_IN_ROOT` a `..` fails so
/// whenever anything on the host was mounted or renamed meanwhile, which on a busy container host is often.
const RETRIES: u32 = 256;

/// What one `statx` says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
}

impl Stat {
    /// The identity of the inode, as fanotify marks and events compare it.
    pub(crate) fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    pub(crate) fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    pub(crate) fn is_link(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }

    /// The word for the kind of file, for messages.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind() {
            libc::S_IFREG => "a regular file",
            libc::S_IFDIR => "a directory",
            libc::S_IFLNK => "a symbolic link",
            libc::S_IFIFO => "a FIFO",
            libc::S_IFSOCK => "a socket",
            libc::S_IFCHR => "a character device",
            libc::S_IFBLK => "a block device",
            _ => "of an unknown kind",
        }
    }
}

/// `openat2(2)`; needs Linux 5.6. `O_CLOEXEC` is always set.
pub(crate) fn openat2(dir: BorrowedFd<'_>, path: &Path, flags: i32, resolve: u64) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: open_how is plain integers, for which all zeroes is a value (and the one the kernel wants in
    // fields that this code does not know).
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = resolve;
    let mut tries = 0;
    loop {
        // SAFETY: the path is NUL-terminated and `how` is valid for reads of the size given; both outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of_val(&how),
            )
        };
        if fd >= 0 {
            // SAFETY: the kernel has just handed this descriptor out, and nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Without O_NONBLOCK an EAGAIN can only be the retry the kernel asks for.
            Some(libc::EAGAIN) if flags & libc::O_NONBLOCK == 0 && tries < RETRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            _ => return Err(error),
        }
    }
}

/// What the kernel knows of an open file, without asking a network server for it.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; the buffer is as large as statx writes.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_BASIC_STATS,
            buffer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statx succeeded, and a zeroed statx is a valid value in any case.
    let found = unsafe { buffer.assume_init() };
    Ok(Stat {
        dev: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        ino: found.stx_ino,
        mode: u32::from(found.stx_mode),
        uid: found.stx_uid,
        gid: found.stx_gid,
        size: found.stx_size,
    })
}

/// Where a symbolic link that was opened with `O_PATH | O_NOFOLLOW` points.
pub(crate) fn read_link(link: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the empty path means the link itself (since Linux 2.6.39), and the buffer has the length given.
    let length =
        unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(length as usize);
    Ok(PathBuf::from(std::ffi::OsString::from_vec(buffer)))
}

/// The kernel's name for a descriptor of *this thread's* table: workers do not share the main thread's.
fn magic_link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

/// The path of an open file as the kernel would print it for this thread. For a file in another mount
/// namespace it is the path there.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(magic_link(fd))
}

/// Opens for reading what an `O_PATH` descriptor stands for, which was checked to be harmless to open.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> io::Result<File> {
    // O_NONBLOCK: a file lease that somebody holds fails the open at once instead of blocking it for
    // /proc/sys/fs/lease-break-time.
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(magic_link(fd))
}

/// Whether two descriptors stand for the same file.
pub(crate) fn same_file(a: impl AsFd, b: impl AsFd) -> bool {
    match (stat(a.as_fd()), stat(b.as_fd())) {
        (Ok(a), Ok(b)) => a.inode() == b.inode(),
        _ => false,
    }
}

/// Whether a file is one of procfs.
pub(crate) fn is_proc(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut found = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the buffer is as large as fstatfs writes. It works on O_PATH descriptors since Linux 3.12.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, and zeroes are a valid value in any case.
    Ok(unsafe { found.assume_init() }.f_type == libc::PROC_SUPER_MAGIC)
}
