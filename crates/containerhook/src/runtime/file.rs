//! Reading files that somebody else may have put there.
//!
//! A name may be a FIFO, a device or a link to one; to open it would wait for ever or have effects. So it is
//! opened as O_PATH, which does nothing, and opened again to read only where it is a regular file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use super::tree::{Stat, stat};

/// States and configurations are a few KiB; what is longer than this is none.
pub(crate) const MAX: u64 = 1024 * 1024;

/// At most the first `max` bytes of a regular file that is open as O_PATH.
pub(crate) fn read(fd: &OwnedFd, max: u64) -> io::Result<Vec<u8>> {
    if stat(fd)?.file_type != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Not /proc/self: the main thread's descriptors are others.
    let path = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mut content = Vec::new();
    File::from(file).take(max).read_to_end(&mut content)?;
    Ok(content)
}

/// All of a regular file that is open as O_PATH.
pub(crate) fn read_all(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let content = read(fd, MAX + 1)?;
    if content.len() as u64 > MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(content)
}

/// A file in a directory, its last name not followed where it is a link.
pub(crate) fn read_at(dir: &OwnedFd, name: &Path) -> io::Result<(Vec<u8>, Stat)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    Ok((read_all(&fd)?, stat(&fd)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_of_a_reasonable_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("good"), "x").unwrap();
        fs::write(path("long"), vec![b' '; MAX as usize + 1]).unwrap();
        fs::create_dir(path("dir")).unwrap();
        symlink("good", path("link")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0)
            .unwrap();
        let fd = OwnedFd::from(File::open(dir.path()).unwrap());
        assert_eq!(read_at(&fd, Path::new("good")).unwrap().0, b"x");
        for name in ["long", "dir", "link", "zero", "fifo", "none"] {
            assert!(read_at(&fd, Path::new(name)).is_err(), "{name}");
        }
    }
}
