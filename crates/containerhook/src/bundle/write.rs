//! Putting a changed `config.json` in the place of the old one, for the runtime that is about to read it.

use super::{Caller, sys};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

const CONFIG: &CStr = c"config.json";
/// What a new file has to take over from the old one besides owner and mode: the labels of SELinux and Smack, and
/// an access control list.
const ATTRIBUTES: [&CStr; 3] = [c"security.selinux", c"security.SMACK64", c"system.posix_acl_access"];
/// An access control list may have 64 KiB.
const ATTRIBUTE_LIMIT: usize = 64 << 10;

/// Replaces a bundle's `config.json`. Whoever reads it reads the old one or the new one, never a half: the new one is
/// written beside it and renamed over it. Owner, mode, security label and access control list stay.
///
/// A `config.json` that is a symbolic link is replaced by a file of this bundle alone; what it pointed at may be the
/// config of other containers too, and stays as it is. An untrusted caller's file is written with her own rights.
///
/// # Errors
/// Where the new file cannot be written (a full disk, a read-only file system) or cannot be made what the old one
/// is. Nothing has changed then and nothing is left behind.
pub(crate) fn write(caller: &Caller<'_>, bundle: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let _rights = caller.rights()?;
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    let name = std::path::Path::new("config.json");
    let old = match sys::openat2(bundle, name, libc::O_PATH, resolve) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            let runtime = Caller { cwd: bundle, ..*caller };
            runtime.look_up(name, 0)?
        }
        other => other?,
    };
    let stat = sys::stat(old.as_fd())?;
    if !stat.is_file() {
        return Err(io::Error::other(format!("config.json is {}", stat.kind_name())));
    }
    let mut new = Temporary::create(bundle)?;
    new.file.write_all(bytes)?;
    // The owner first: changing it clears the set-id bits.
    check(chown(&new.file, stat.uid, stat.gid))?;
    check(chmod(&new.file, stat.mode & 0o7777))?;
    for name in ATTRIBUTES {
        if let Some(value) = attribute(old.as_fd(), name)? {
            set_attribute(&new.file, name, &value)?;
        }
    }
    // Some file systems tell only now that the data could not be stored; and a host that loses power after the
    // rename must not find an empty file.
    new.file.sync_all()?;
    new.rename_over_config()
}

/// A file beside `config.json` that is removed again unless it takes its place.
struct Temporary<'a> {
    file: File,
    dir: BorrowedFd<'a>,
    name: Option<CString>,
}

impl<'a> Temporary<'a> {
    fn create(dir: BorrowedFd<'a>) -> io::Result<Self> {
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        for attempt in 0..100 {
            let name = CString::new(format!(".config.json.containerhook-{thread}-{attempt}"))?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            // SAFETY: the name is NUL-terminated and outlives the call.
            let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) };
            if fd >= 0 {
                // SAFETY: the kernel has just handed this descriptor out, and nobody else owns it.
                return Ok(Self { file: unsafe { File::from_raw_fd(fd) }, dir, name: Some(name) });
            }
            let error = io::Error::last_os_error();
            // One may be left over from a listener that was killed just then.
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn rename_over_config(mut self) -> io::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        let dir = self.dir.as_raw_fd();
        // SAFETY: both names are NUL-terminated and outlive the call.
        check(unsafe { libc::renameat(dir, name.as_ptr(), dir, CONFIG.as_ptr()) })?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // SAFETY: the name is NUL-terminated and outlives the call.
            unsafe { libc::unlinkat(self.dir.as_raw_fd(), name.as_ptr(), 0) };
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn chown(file: &File, uid: u32, gid: u32) -> libc::c_int {
    // SAFETY: takes a descriptor that is open, and integers.
    unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }
}

fn chmod(file: &File, mode: u32) -> libc::c_int {
    // SAFETY: takes a descriptor that is open, and an integer.
    unsafe { libc::fchmod(file.as_raw_fd(), mode) }
}

/// An extended attribute of a file that is open with `O_PATH`; `None` if it has none or the file system knows none.
fn attribute(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    // fgetxattr refuses O_PATH descriptors.
    let path = CString::new(format!("/proc/thread-self/fd/{}", file.as_raw_fd()))?;
    let mut value = vec![0_u8; ATTRIBUTE_LIMIT];
    // SAFETY: path and name are NUL-terminated, and the buffer has the length given.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        };
    }
    value.truncate(length as usize);
    Ok(Some(value))
}

fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated, and the kernel reads as many bytes as the slice has.
    check(unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::{path_fd, skipped_without_root, trusted};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn write_in(dir: &Path, bytes: &[u8]) -> io::Result<()> {
        let root = path_fd("/");
        write(&trusted(root.as_fd(), root.as_fd()), path_fd(dir).as_fd(), bytes)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn owner_mode_and_attributes_stay() {
        if skipped_without_root("owner_mode_and_attributes_stay") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        fs::write(&config, "old").unwrap();
        chown(&config, Some(123), Some(456)).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
        // Without SELinux its label is an attribute like another, which root may set.
        let label =
            set_attribute(&File::open(&config).unwrap(), c"security.selinux", b"system_u:object_r:x_t:s0\0");
        write_in(dir.path(), b"new").unwrap();
        let found = fs::metadata(&config).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (123, 456, 0o640));
        assert_eq!(fs::read(&config).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["config.json"]);
        if label.is_ok() {
            let kept = attribute(path_fd(&config).as_fd(), c"security.selinux").unwrap();
            assert_eq!(kept.as_deref(), Some(&b"system_u:object_r:x_t:s0\0"[..]));
        } else {
            println!("SKIPPED: the label's part of owner_mode_and_attributes_stay: {label:?}");
        }
    }

    #[test]
    fn a_link_is_replaced_and_its_target_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        fs::write(dir.path().join("shared.json"), "shared").unwrap();
        symlink("../shared.json", bundle.join("config.json")).unwrap();
        write_in(&bundle, b"new").unwrap();
        assert!(fs::symlink_metadata(bundle.join("config.json")).unwrap().is_file());
        assert_eq!(fs::read(bundle.join("config.json")).unwrap(), b"new");
        assert_eq!(fs::read(dir.path().join("shared.json")).unwrap(), b"shared");
    }

    #[test]
    fn readers_see_the_old_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let versions = [vec![b'a'; 100_000], vec![b'b'; 200_000]];
        fs::write(&config, &versions[0]).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) {
                    let bytes = fs::read(&config).unwrap();
                    assert!(versions.contains(&bytes), "{} bytes", bytes.len());
                    seen += 1;
                }
                seen
            });
            for turn in 0..100 {
                write_in(dir.path(), &versions[(turn + 1) % 2]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
    }

    #[test]
    fn a_full_disk_changes_nothing() {
        let test = "a_full_disk_changes_nothing";
        if skipped_without_root(test) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
        assert!(
            Command::new("mount").args(options).arg(dir.path()).status().unwrap().success(),
            "{test}: mount"
        );
        fs::write(dir.path().join("config.json"), "old").unwrap();
        let result = write_in(dir.path(), &vec![b'x'; 1 << 20]);
        let left = names(dir.path());
        let config = fs::read(dir.path().join("config.json")).unwrap();
        let small = write_in(dir.path(), b"small");
        assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((left, config), (vec!["config.json".to_owned()], b"old".to_vec()));
        assert!(small.is_ok());
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write_in(dir.path(), b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(dir.path().join("config.json")).unwrap();
        assert!(write_in(dir.path(), b"x").unwrap_err().to_string().contains("a directory"));
        assert_eq!(names(dir.path()), ["config.json"]);
    }

    #[test]
    fn a_leftover_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "old").unwrap();
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        symlink("/etc/passwd", dir.path().join(format!(".config.json.containerhook-{thread}-0"))).unwrap();
        write_in(dir.path(), b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), b"new");
    }

    #[test]
    fn an_untrusted_callers_config_is_written_with_her_rights() {
        if skipped_without_root("an_untrusted_callers_config_is_written_with_her_rights") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.json");
        fs::write(&config, "old").unwrap();
        let root = path_fd("/");
        let caller =
            Caller { fsuid: 1234, fsgid: 1234, trusted: false, ..trusted(root.as_fd(), root.as_fd()) };
        let bundle = path_fd(dir.path());
        let error = write(&caller, bundle.as_fd(), b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        chown(dir.path(), Some(1234), Some(1234)).unwrap();
        chown(&config, Some(1234), Some(1234)).unwrap();
        write(&caller, bundle.as_fd(), b"new").unwrap();
        assert_eq!(fs::metadata(&config).unwrap().uid(), 1234);
        assert_eq!(names(dir.path()), ["config.json"]);
    }
}
