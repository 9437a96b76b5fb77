//! Opening files with somebody else's rights, on one thread.
//!
//! An unprivileged user may execute a runtime with any words she likes. What those words name must be opened as
//! if she had opened it herself, or the listener would read root's files for her. The kernel checks file access
//! by the *thread's* file system uid, gid and groups, and the raw system calls change them for one thread alone
//! (the C library's `setgroups` would change every thread of the process).

use std::io;
use std::marker::PhantomData;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// What remains in effect while rights are lent: what it takes to give them back.
const KEPT: u32 = 1 << 6 /* CAP_SETGID */ | 1 << 7 /* CAP_SETUID */;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// While it lives, this thread opens files with another user's rights and no capabilities over files. A thread
/// it starts meanwhile would keep them for ever.
#[derive(Debug)]
pub(crate) struct Rights {
    fsuid: u32,
    fsgid: u32,
    groups: Vec<u32>,
    capabilities: [Capabilities; 2],
    /// It restores the thread it was made on.
    thread: PhantomData<*const ()>,
}

impl Rights {
    /// Takes the given user's rights on for this thread.
    ///
    /// # Errors
    /// Where this process may not change its rights (no `CAP_SETUID`, `CAP_SETGID`); nothing is changed then.
    pub(crate) fn take(fsuid: u32, fsgid: u32, groups: &[u32]) -> io::Result<Self> {
        let capabilities = capabilities()?;
        let before = Self {
            fsuid: fs_uid(),
            fsgid: fs_gid(),
            groups: own_groups()?,
            capabilities,
            thread: PhantomData,
        };
        set_groups(groups)?;
        // From here on `before` restores on every way out.
        set_fs_gid(fsgid);
        set_fs_uid(fsuid);
        if fs_gid() != fsgid || fs_uid() != fsuid {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let mut lowered = capabilities;
        // setfsuid lowers the file capabilities by itself only when it leaves uid 0.
        lowered[0].effective &= KEPT;
        lowered[1].effective = 0;
        set_capabilities(&lowered)?;
        Ok(before)
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        // None of these can fail, as `take` could do the same the other way; were one to, this thread would be
        // left with less than it had, never with more.
        set_fs_uid(self.fsuid);
        set_fs_gid(self.fsgid);
        let _ = set_groups(&self.groups);
        let _ = set_capabilities(&self.capabilities);
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_fs_uid(uid: u32) -> u32 {
    // SAFETY: takes an integer and returns the one before; it cannot fail, only not do it.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) as u32 }
}

fn set_fs_gid(gid: u32) -> u32 {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) as u32 }
}

/// The way to ask: -1 is no uid, so nothing is changed and the present one returned.
fn fs_uid() -> u32 {
    set_fs_uid(u32::MAX)
}

fn fs_gid() -> u32 {
    set_fs_gid(u32::MAX)
}

fn own_groups() -> io::Result<Vec<u32>> {
    // SAFETY: a size of 0 asks for the number and writes nothing.
    let count = check(unsafe { libc::syscall(libc::SYS_getgroups, 0, std::ptr::null_mut::<u32>()) })?;
    let mut groups = vec![0_u32; count as usize];
    // SAFETY: the buffer holds as many as the size says.
    let count = check(unsafe { libc::syscall(libc::SYS_getgroups, groups.len(), groups.as_mut_ptr()) })?;
    groups.truncate(count as usize);
    Ok(groups)
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads as many group ids as the slice holds. The raw call is this thread's alone.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

fn capabilities() -> io::Result<[Capabilities; 2]> {
    let mut header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: version 3 writes two sets, which is what the array holds; pid 0 is this thread.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(sets)
}

fn set_capabilities(sets: &[Capabilities; 2]) -> io::Result<()> {
    let mut header = Header { version: CAPABILITY_VERSION, pid: 0 };
    // SAFETY: version 3 reads two sets, which is what the array holds; pid 0 is this thread.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::skipped_without_root;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lent_rights_do_not_open_roots_files_and_are_given_back() {
        if skipped_without_root("lent_rights_do_not_open_roots_files_and_are_given_back") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let before = (own_groups().unwrap(), capabilities().unwrap(), fs_uid(), fs_gid());

        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let path = secret.clone();
        let other = std::thread::spawn(move || asked.recv().map(|()| fs::read(path)));
        let rights = Rights::take(12345, 12345, &[7, 8]).unwrap();
        assert_eq!(fs::read(&secret).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(own_groups().unwrap(), [7, 8]);
        // Another thread still has the process's own rights.
        ask.send(()).unwrap();
        assert_eq!(other.join().unwrap().unwrap().unwrap(), b"x");
        drop(rights);

        assert_eq!(fs::read(&secret).unwrap(), b"x");
        assert_eq!((own_groups().unwrap(), capabilities().unwrap(), fs_uid(), fs_gid()), before);
    }

    #[test]
    fn groups_count() {
        if skipped_without_root("groups_count") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let shared = dir.path().join("shared");
        fs::write(&shared, "x").unwrap();
        std::os::unix::fs::chown(&shared, Some(0), Some(4321)).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o640)).unwrap();
        let with = Rights::take(12345, 12345, &[4321]).unwrap();
        assert!(fs::read(&shared).is_ok());
        // Lent twice, as a function that lends them may call another one.
        let inner = Rights::take(12345, 12345, &[]).unwrap();
        assert!(fs::read(&shared).is_err());
        drop(inner);
        assert!(fs::read(&shared).is_ok());
        drop(with);
    }
}
