//! Where the host finds a directory of another mount namespace.
//!
//! A nested engine (Docker in Docker, kind, a snap) names its bundles by paths of its own. The host has no such
//! path, or another directory under it; but where the file system itself is mounted on the host too, say as the
//! nested engine's volume or root, the directory can be named there.

use super::sys;
use crate::proc::HostProc;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A host with 10,000 mounts has 2 MiB of them; the rest is not read.
const MOUNTS_LIMIT: u64 = 16 << 20;

/// The directory's path on the host, if the kernel's name for it leads there.
pub(crate) fn own_path(dir: BorrowedFd<'_>) -> Option<PathBuf> {
    leads_to(&sys::path_of(dir).ok()?, dir)
}

/// The path on the host of a directory that a process in another mount namespace has open; `None` if its file system
/// is not mounted on the host, as a container's own tmpfs is not. Then `/proc/<pid>/root` leads there, for as long as
/// that process lives.
pub(crate) fn host_path(dir: BorrowedFd<'_>, proc: &HostProc, pid: i32) -> Option<PathBuf> {
    if let Some(path) = own_path(dir) {
        return Some(path);
    }
    let there = sys::path_of(dir).ok()?;
    let info = read(Path::new(&format!("/proc/thread-self/fdinfo/{}", dir.as_raw_fd())))?;
    let info = String::from_utf8_lossy(&info);
    let id: u64 = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
    let theirs = read(&proc.path(pid, "mountinfo"))?;
    let mount = mounts(&theirs).find(|mount| mount.id == id)?;
    let inside = join(&mount.root, there.strip_prefix(&mount.point).ok()?);
    let ours = read(Path::new("/proc/thread-self/mountinfo"))?;
    mounts(&ours)
        .filter(|ours| ours.device == mount.device)
        .filter_map(|ours| Some(join(&ours.point, inside.strip_prefix(&ours.root).ok()?)))
        .find_map(|path| leads_to(&path, dir))
}

/// The host's own name for what the listener finds at `path`: the host's root is seen at `host_root`.
///
/// What is told to users is named so. A listener in a container, and whoever it tells, finds it below `HOST_ROOT`.
pub(crate) fn on_host(host_root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(host_root) {
        Ok(inside) => Path::new("/").join(inside),
        Err(_) => path.to_owned(),
    }
}

/// Joins without the slash that an empty path would leave at the end.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

fn leads_to(path: &Path, dir: BorrowedFd<'_>) -> Option<PathBuf> {
    let there = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path).ok()?;
    sys::same_file(there.as_fd(), dir).then(|| path.to_owned())
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MOUNTS_LIMIT).read_to_end(&mut text).ok()?;
    Some(text)
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// `major:minor` of the file system.
    device: Vec<u8>,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

/// The lines of a `mountinfo` that can be read; see proc(5).
fn mounts(text: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let device = words.nth(1)?.to_owned();
        Some(Mount { id, device, root: unescape(words.next()?), point: unescape(words.next()?) })
    })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            path.push(digits.iter().fold(0_u8, |value, digit| (value << 3) | (digit - b'0')));
            rest = &after[3..];
        } else {
            path.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::{path_fd, skipped_without_root};
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn what_the_listener_finds_below_its_host_root_has_the_hosts_name() {
        for (host_root, path, told) in [
            ("/", "/run/b", "/run/b"),
            ("/host", "/host/run/b", "/run/b"),
            ("/host/", "/host/run/b", "/run/b"),
            ("/host", "/host", "/"),
            ("/host", "/hosts/b", "/hosts/b"),
            ("/host", "/host/proc/7/root/b", "/proc/7/root/b"),
            ("/host", "", ""),
        ] {
            assert_eq!(on_host(Path::new(host_root), Path::new(path)), Path::new(told), "{path}");
        }
    }

    #[test]
    fn lines_of_mountinfo() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\nnonsense\n37 35 0:5 / /a\\134b rw";
        let found: Vec<Mount> = mounts(text).collect();
        assert_eq!(found.len(), 2);
        let expected =
            Mount { id: 36, device: b"98:0".to_vec(), root: "/mnt1".into(), point: "/mnt 2".into() };
        assert_eq!(found[0], expected);
        assert_eq!(found[1].point, Path::new("/a\\b"));
        assert_eq!(unescape(b"\\9\\40\\"), Path::new("\\9\\40\\"));
    }

    /// A process in a mount namespace of its own, made by a shell script that says `ready`.
    fn namespace(script: &str, dir: &Path) -> std::process::Child {
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                &format!("{script}\necho ready\nread end"),
            ])
            .arg("sh")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    #[test]
    fn a_bundle_of_another_mount_namespace_is_named_on_the_host() {
        if skipped_without_root("a_bundle_of_another_mount_namespace_is_named_on_the_host") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["volume/data/bundle", "inside", "covered/data/bundle"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let mut child =
            namespace("mount --bind \"$1/volume\" \"$1/covered\"\ncd \"$1/covered/data/bundle\"", &dir);
        let pid = i32::try_from(child.id()).unwrap();
        let cwd = path_fd(format!("/proc/{pid}/cwd"));
        // The host has a directory of that name too, but another one.
        assert_eq!(sys::path_of(cwd.as_fd()).unwrap(), dir.join("covered/data/bundle"));
        assert_eq!(own_path(cwd.as_fd()), None);
        assert_eq!(host_path(cwd.as_fd(), &HostProc::default(), pid), Some(dir.join("volume/data/bundle")));
        drop(child.stdin.take());
        child.wait().unwrap();

        let mut child =
            namespace("mount -t tmpfs tmpfs \"$1/inside\"\nmkdir \"$1/inside/b\"\ncd \"$1/inside/b\"", &dir);
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(host_path(path_fd(format!("/proc/{pid}/cwd")).as_fd(), &HostProc::default(), pid), None);
        drop(child.stdin.take());
        child.wait().unwrap();

        let here = path_fd(dir.join("volume"));
        assert_eq!(host_path(here.as_fd(), &HostProc::default(), 1), Some(dir.join("volume")));
    }
}
