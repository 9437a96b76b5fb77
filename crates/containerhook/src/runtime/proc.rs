//! The few files of `/proc` that discovery reads, each with a bound.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::tree::Inode;
use crate::proc::HostProc;

/// An argument list or environment beyond this is cut off.
const WORDS: u64 = 256 * 1024;
const SMALL: u64 = 16 * 1024;
const MOUNTS: u64 = 8 * 1024 * 1024;
/// As many processes as a kernel can have.
const PIDS: usize = 4 * 1024 * 1024;

/// A mounted procfs.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    dir: PathBuf,
}

/// What `/proc/PID/stat` tells of a process that is more than a zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) parent: u32,
    /// In clock ticks since boot, as runtimes write it into their state.
    pub(crate) start_time: u64,
}

/// What `/proc/PID/status` tells, in the ids of our namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) euid: u32,
    pub(crate) effective: u64,
    /// Its pid in each pid namespace, ours first.
    pub(crate) pids: Vec<u32>,
}

impl Proc {
    pub(crate) fn of(host_root: &Path) -> Self {
        Self { dir: host_root.join("proc") }
    }

    /// The same as the other has.
    pub(crate) fn by(proc: &HostProc) -> Self {
        Self { dir: proc.dir().to_owned() }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let number = |e: std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
        let mut pids: Vec<u32> = entries.take(PIDS).flatten().filter_map(number).collect();
        pids.sort_unstable();
        pids
    }

    pub(crate) fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.dir.join(pid.to_string()).join(name)
    }

    fn read(&self, pid: u32, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.path(pid, name))?.take(max).read_to_end(&mut content)?;
        Ok(content)
    }

    pub(crate) fn comm(&self, pid: u32) -> Option<String> {
        let comm = self.read(pid, "comm", SMALL).ok()?;
        Some(String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
    }

    /// Its executable, as it was before an upgrade removed it.
    pub(crate) fn exe(&self, pid: u32) -> Option<PathBuf> {
        let exe = std::fs::read_link(self.path(pid, "exe")).ok()?.into_os_string().into_vec();
        let path = exe.strip_suffix(b" (deleted)").unwrap_or(&exe);
        Some(OsStr::from_bytes(path).into())
    }

    pub(crate) fn exe_name(&self, pid: u32) -> Option<String> {
        Some(self.exe(pid)?.file_name()?.to_string_lossy().into_owned())
    }

    pub(crate) fn cmdline(&self, pid: u32) -> Vec<OsString> {
        words(&self.read(pid, "cmdline", WORDS).unwrap_or_default())
    }

    pub(crate) fn environ(&self, pid: u32) -> HashMap<OsString, OsString> {
        let words = words(&self.read(pid, "environ", WORDS).unwrap_or_default());
        let pair = |word: OsString| {
            let bytes = word.as_bytes();
            let at = bytes.iter().position(|b| *b == b'=')?;
            Some((OsStr::from_bytes(&bytes[..at]).into(), OsStr::from_bytes(&bytes[at + 1..]).into()))
        };
        words.into_iter().filter_map(pair).collect()
    }

    /// None for a process that is gone, or waits to be reaped.
    pub(crate) fn life(&self, pid: u32) -> Option<Life> {
        parse_stat(&self.read(pid, "stat", SMALL).ok()?)
    }

    pub(crate) fn status(&self, pid: u32) -> Option<Status> {
        let status = self.read(pid, "status", SMALL).ok()?;
        Some(parse_status(&String::from_utf8_lossy(&status)))
    }

    pub(crate) fn cgroup(&self, pid: u32) -> String {
        String::from_utf8_lossy(&self.read(pid, "cgroup", SMALL).unwrap_or_default()).into_owned()
    }

    /// Outside ids and lengths of the user namespace's map.
    pub(crate) fn uid_map(&self, pid: u32) -> Vec<(u32, u32)> {
        let map = self.read(pid, "uid_map", SMALL).unwrap_or_default();
        let range = |line: &str| {
            let mut fields = line.split_ascii_whitespace().skip(1).map(str::parse);
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        String::from_utf8_lossy(&map).lines().filter_map(range).collect()
    }

    pub(crate) fn namespace(&self, pid: u32, kind: &str) -> Option<Inode> {
        inode(&self.path(pid, "ns").join(kind))
    }

    /// One of the host's own.
    pub(crate) fn host_namespace(&self, kind: &str) -> Option<Inode> {
        self.namespace(1, kind).or_else(|| {
            let is_kernel = self.comm(2).is_some_and(|comm| comm == "kthreadd") && self.exe(2).is_none();
            self.namespace(2, kind).filter(|_| is_kernel)
        })
    }

    pub(crate) fn root(&self, pid: u32) -> Option<Inode> {
        inode(&self.path(pid, "root"))
    }

    pub(crate) fn cwd(&self, pid: u32) -> Option<PathBuf> {
        std::fs::read_link(self.path(pid, "cwd")).ok()
    }

    /// Where a process has mounts of file systems that may never answer.
    pub(crate) fn slow_mounts(&self, pid: u32) -> Vec<PathBuf> {
        let mounts = self.read(pid, "mountinfo", MOUNTS).unwrap_or_default();
        mounts.split(|b| *b == b'\n').filter_map(slow_mount).collect()
    }

    /// When the machine booted, in seconds since 1970, by the wall clock of now.
    pub(crate) fn boot_time(&self) -> Option<u64> {
        let mut stat = String::new();
        File::open(self.dir.join("stat")).ok()?.take(MOUNTS).read_to_string(&mut stat).ok()?;
        stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
    }
}

fn inode(path: &Path) -> Option<Inode> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Inode { dev: meta.dev(), ino: meta.ino() })
}

fn words(content: &[u8]) -> Vec<OsString> {
    let content = content.strip_suffix(b"\0").unwrap_or(content);
    if content.is_empty() {
        return Vec::new();
    }
    content.split(|b| *b == 0).map(|w| OsStr::from_bytes(w).to_owned()).collect()
}

/// The name in parentheses may hold anything, parentheses too; what follows the last one is fixed.
fn parse_stat(stat: &[u8]) -> Option<Life> {
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X" | "x") {
        return None;
    }
    // Fields 4 and 22 of proc(5); the first here is its third.
    Some(Life { parent: fields.get(1)?.parse().ok()?, start_time: fields.get(19)?.parse().ok()? })
}

fn parse_status(status: &str) -> Status {
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let numbers = |name: &str| {
        let words = field(name).unwrap_or_default().split_ascii_whitespace();
        words.filter_map(|w| w.parse().ok()).collect::<Vec<u32>>()
    };
    Status {
        euid: numbers("Uid").get(1).copied().unwrap_or(u32::MAX),
        effective: u64::from_str_radix(field("CapEff").unwrap_or_default().trim(), 16).unwrap_or(0),
        pids: numbers("NSpid"),
    }
}

/// The mount point of a line of mountinfo whose file system another program or machine serves.
fn slow_mount(line: &[u8]) -> Option<PathBuf> {
    let line = std::str::from_utf8(line).ok()?;
    let (mount, source) = line.split_once(" - ")?;
    let kind = source.split(' ').next()?;
    let slow = ["fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "autofs", "lustre", "glusterfs"];
    if !slow.iter().any(|s| kind.starts_with(s)) || kind == "fuseblk" {
        return None;
    }
    let point = mount.split(' ').nth(4)?;
    Some(PathBuf::from(OsStr::from_bytes(&unescape(point))))
}

/// mountinfo writes blanks and the like as three octal digits.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = b"7 (a) S 1 (b) R 42 7 7 0 -1 4194560 704 0 0 0 0 1 0 0 20 0 1 0 157980 2322432 332 1";
        assert_eq!(parse_stat(stat), Some(Life { parent: 42, start_time: 157_980 }));
        assert_eq!(parse_stat(b"7 (x) Z 42 7 7 0 -1 4 7 0 0 0 0 1 0 0 20 0 1 0 157980 2 3"), None);
        for bad in [&b""[..], b"7 (x", b"7 (x) S", b"7 (x) S 1 2 3", b"7 (x) S \xff"] {
            assert_eq!(parse_stat(bad), None);
        }
    }

    #[test]
    fn status_lines() {
        let status = "Name:\tx\nUid:\t1000\t0\t0\t0\nNSpid:\t70\t7\t1\nCapEff:\t000001ffffffffff\n";
        let status = parse_status(status);
        assert_eq!(status, Status { euid: 0, effective: 0x1ff_ffff_ffff, pids: vec![70, 7, 1] });
        assert_eq!(parse_status("").euid, u32::MAX);
    }

    #[test]
    fn mounts_that_may_never_answer() {
        let fuse = b"36 35 0:33 / /a\\040b rw,nosuid shared:1 - fuse.sshfs x rw";
        assert_eq!(slow_mount(fuse), Some("/a b".into()));
        assert_eq!(slow_mount(b"36 35 0:33 / /a rw - ext4 /dev/vda rw"), None);
        assert_eq!(slow_mount(b"36 35 0:33 / /a rw - fuseblk /dev/vda rw"), None);
        assert_eq!(slow_mount(b"nonsense"), None);
    }

    #[test]
    fn this_process_is_told_right() {
        let proc = Proc::of(Path::new("/"));
        let pid = std::process::id();
        assert!(proc.pids().contains(&pid));
        assert_eq!(proc.cmdline(pid), std::env::args_os().collect::<Vec<_>>());
        assert_eq!(proc.life(pid).map(|l| l.parent), Some(std::os::unix::process::parent_id()));
        assert_eq!(proc.status(pid).and_then(|s| s.pids.first().copied()), Some(pid));
        assert_eq!(
            proc.exe_name(pid).as_deref(),
            std::env::current_exe().unwrap().file_name().unwrap().to_str()
        );
        assert_eq!(proc.cwd(pid), std::env::current_dir().ok());
    }
}
