//! Changes on hosts made up in a folder.

use super::*;
use crate::runtime::tests::{executable, executable_with, host, link, search, write};
use crate::runtime::{Role, Search, discover};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Watching {
    host: TempDir,
    search: Search,
    watch: Watch,
    changes: Vec<Change>,
}

/// Searches, and follows what is found until nothing can have changed between the two.
fn settled(watch: &mut Watch, search: &Search) -> Discovered {
    let found = discover(search);
    let changes = watch.follow(&found);
    if changes.is_empty() {
        return found;
    }
    assert_eq!(changes, [Change::All]);
    let found = discover(search);
    assert_eq!(watch.follow(&found), []);
    found
}

impl Watching {
    fn new(host: TempDir) -> Self {
        let search = Search { engines: false, ..search(&host) };
        let mut watch = Watch::new().unwrap();
        settled(&mut watch, &search);
        assert_eq!(watch.warnings(), []);
        Self { host, search, watch, changes: Vec::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.host.path().join(&path[1..])
    }

    /// Waits for a change that pleases, not longer than is reasonable on a busy machine.
    fn wait(&mut self, what: &str, pleases: impl Fn(&Change) -> bool) -> Change {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(at) = self.changes.iter().position(&pleases) {
                return self.changes.drain(..=at).next_back().expect("it is there");
            }
            assert!(Instant::now() < deadline, "no {what}: {:?}", self.changes);
            let fd = self.watch.fd();
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let _ = rustix::event::poll(&mut fds, Some(&timeout));
            let changes = self.watch.drain();
            self.changes.extend(changes);
        }
    }

    fn wait_found(&mut self, path: &str) -> Binary {
        let wanted = PathBuf::from(path);
        match self.wait(path, |c| matches!(c, Change::Found(b) if b.path == wanted)) {
            Change::Found(binary) => binary,
            _ => unreachable!("it was asked for"),
        }
    }

    fn wait_gone(&mut self, path: &str) {
        let wanted = PathBuf::from(path);
        self.wait(path, |c| matches!(c, Change::Gone(b) if b.path == wanted));
    }

    fn quiet(&mut self) {
        self.changes.extend(self.watch.drain());
        assert_eq!(self.changes, []);
    }
}

#[test]
fn a_binary_renamed_over_the_old_one() {
    let h = host();
    executable(&h, "/usr/bin/runc");
    executable(&h, "/elsewhere/next");
    let mut w = Watching::new(h);
    for _ in 0..5 {
        fs::rename(w.path("/elsewhere/next"), w.path("/usr/bin/runc")).unwrap();
        let found = w.wait_found("/usr/bin/runc");
        assert_eq!(found.role, Role::Runtime);
        w.wait_gone("/usr/bin/runc");
        executable(&w.host, "/elsewhere/next");
    }
    w.quiet();
}

#[test]
fn what_an_installer_is_about_to_rename() {
    let h = host();
    executable(&h, "/usr/bin/runc");
    let mut w = Watching::new(h);
    for name in ["runc.dpkg-new", ".runc.x1Yz", "runc;5f3a"] {
        executable(&w.host, &format!("/usr/bin/{name}"));
        let likely = w.wait(name, |c| matches!(c, Change::Likely(_)));
        let Change::Likely(likely) = likely else { unreachable!("it was asked for") };
        assert_eq!((&*likely.name, likely.path), ("runc", format!("/usr/bin/{name}").into()));
        fs::rename(w.path(&format!("/usr/bin/{name}")), w.path("/usr/bin/runc")).unwrap();
        assert_eq!(w.wait_found("/usr/bin/runc").inode, likely.inode);
        w.wait_gone("/usr/bin/runc");
    }
    executable(&w.host, "/usr/bin/unrelated");
    w.quiet();
}

#[test]
fn a_runtime_installed_later_even_where_no_directory_is_yet() {
    let mut w = Watching::new(host());
    executable(&w.host, "/usr/local/sbin/runc");
    w.wait_found("/usr/local/sbin/runc");
    executable(&w.host, "/var/lib/rancher/rke2/data/v1/bin/runc");
    w.wait_found("/var/lib/rancher/rke2/data/v1/bin/runc");
    executable(&w.host, "/var/lib/rancher/rke2/data/v2/bin/runc");
    w.wait_found("/var/lib/rancher/rke2/data/v2/bin/runc");
    executable(&w.host, "/usr/bin/conmon");
    assert_eq!(w.wait_found("/usr/bin/conmon").role, Role::Monitor);
    // Written first, made executable afterwards.
    let file = write(&w.host, "/usr/bin/crun", "\x7fELF");
    w.changes.extend(w.watch.drain());
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    w.wait_found("/usr/bin/crun");
    fs::remove_dir_all(w.path("/var/lib/rancher")).unwrap();
    w.wait_gone("/var/lib/rancher/rke2/data/v2/bin/runc");
    executable(&w.host, "/var/lib/rancher/rke2/data/v3/bin/runc");
    w.wait_found("/var/lib/rancher/rke2/data/v3/bin/runc");
}

#[test]
fn a_link_that_flips() {
    let h = host();
    // Neither lies where a search would find it without the link.
    executable(&h, "/versions/1/runc");
    executable(&h, "/versions/2/runc");
    link(&h, "/snap/docker/current/bin", "/versions/1");
    let mut w = Watching::new(h);
    symlink("/versions/2", w.path("/snap/docker/current/new")).unwrap();
    fs::rename(w.path("/snap/docker/current/new"), w.path("/snap/docker/current/bin")).unwrap();
    w.wait_found("/versions/2/runc");
    w.wait_gone("/versions/1/runc");
    // The directory behind the link is watched now, and the other no longer.
    executable(&w.host, "/versions/1/crun");
    executable(&w.host, "/versions/2/crun");
    w.wait_found("/versions/2/crun");
    w.quiet();
    // A chain: the target of the link becomes a link.
    executable(&w.host, "/versions/3/runc");
    fs::rename(w.path("/versions/2"), w.path("/versions/old")).unwrap();
    w.wait_gone("/versions/2/runc");
    symlink("3", w.path("/versions/2")).unwrap();
    w.wait_found("/versions/3/runc");
}

#[test]
fn a_directory_that_is_replaced() {
    let h = host();
    executable(&h, "/opt/x/bin/runc");
    executable(&h, "/stage/bin/runc");
    let mut w = Watching::new(h);
    fs::rename(w.path("/opt/x"), w.path("/away")).unwrap();
    w.wait_gone("/opt/x/bin/runc");
    fs::rename(w.path("/stage"), w.path("/opt/x")).unwrap();
    w.wait_found("/opt/x/bin/runc");
    // Both at once, so that no look finds the path empty.
    executable(&w.host, "/stage/bin/crun");
    fs::rename(w.path("/opt/x"), w.path("/away2")).unwrap();
    fs::rename(w.path("/stage"), w.path("/opt/x")).unwrap();
    w.wait_found("/opt/x/bin/crun");
    w.wait_gone("/opt/x/bin/runc");
    // What happens where it went is nobody's concern.
    executable(&w.host, "/away/bin/crun");
    executable(&w.host, "/away2/bin/youki");
    w.quiet();
    executable(&w.host, "/opt/x/bin/runc");
    w.wait_found("/opt/x/bin/runc");
}

#[test]
fn a_configuration_that_gains_a_runtime() {
    let h = host();
    executable(&h, "/srv/x");
    executable(&h, "/srv/y");
    let mut w = Watching::new(h);
    let wait = |w: &mut Watching, file: &str| {
        let wanted = w.path(file);
        w.wait(file, |c| matches!(c, Change::Config(f) if wanted.starts_with(f)));
        // As the engine does: a full search, and what is new in it.
        settled(&mut w.watch, &w.search)
    };
    write(
        &w.host,
        "/etc/crio/crio.conf.d/10-x.conf",
        "[crio.runtime.runtimes.x]\nruntime_path = \"/srv/x\"\n",
    );
    let expected: &[&str] = &["/srv/x"];
    let mut found = wait(&mut w, "/etc/crio/crio.conf.d/10-x.conf");
    while crate::runtime::tests::paths(&found) != expected {
        found = wait(&mut w, "/etc/crio/crio.conf.d/10-x.conf");
    }
    write(&w.host, "/etc/docker/daemon.json.new", r#"{"runtimes":{"y":{"path":"/srv/y"}}}"#);
    fs::create_dir_all(w.path("/etc/docker")).unwrap();
    fs::rename(w.path("/etc/docker/daemon.json.new"), w.path("/etc/docker/daemon.json")).unwrap();
    while crate::runtime::tests::paths(&found) != ["/srv/x", "/srv/y"] {
        found = wait(&mut w, "/etc/docker/daemon.json");
    }
    // Named by a configuration, a binary is watched like any other.
    executable(&w.host, "/elsewhere/y");
    w.changes.clear();
    fs::rename(w.path("/elsewhere/y"), w.path("/srv/y")).unwrap();
    w.wait_found("/srv/y");
}

#[test]
fn other_names_are_no_change() {
    let h = host();
    executable(&h, "/usr/bin/runc");
    let mut w = Watching::new(h);
    for n in 0..100 {
        executable(&w.host, &format!("/usr/bin/tool{n}"));
    }
    executable_with(&w.host, "/usr/bin/tool1", b"again");
    fs::remove_file(w.path("/usr/bin/tool2")).unwrap();
    w.quiet();
}

#[test]
fn an_overflow_is_told_as_such() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let limit: usize = limit.unwrap_or_default().trim().parse().unwrap_or(16_384);
    if limit > 100_000 {
        return crate::runtime::tests::skipped(
            "an_overflow_is_told_as_such",
            "the queue is too long to fill",
        );
    }
    let h = host();
    fs::create_dir_all(h.path().join("usr/bin")).unwrap();
    let mut w = Watching::new(h);
    for n in 0..=limit / 3 {
        let path = w.path(&format!("/usr/bin/{n}"));
        fs::write(&path, "").unwrap();
        fs::remove_file(path).unwrap();
    }
    w.wait("overflow", |c| *c == Change::All);
    settled(&mut w.watch, &w.search);
    executable(&w.host, "/usr/bin/runc");
    w.wait_found("/usr/bin/runc");
}

#[test]
fn what_came_between_the_search_and_the_watch() {
    let h = host();
    executable(&h, "/usr/bin/runc");
    let found = discover(&search(&h));
    executable(&h, "/usr/bin/crun");
    let mut watch = Watch::new().unwrap();
    let changes = watch.follow(&found);
    assert!(matches!(&changes[..], [Change::Found(b), Change::All] if b.name == "crun"), "{changes:?}");
}

#[test]
fn what_a_configuration_said_between_the_search_and_the_watch() {
    let h = host();
    executable(&h, "/srv/x");
    let daemon = |path: &str| write(&h, "/etc/docker/daemon.json", path);
    daemon("{}");
    let found = discover(&search(&h));
    daemon(r#"{"runtimes": {"x": {"path": "/srv/x"}}}"#);
    let mut watch = Watch::new().unwrap();
    assert_eq!(watch.follow(&found), [Change::All]);
    let found = discover(&search(&h));
    assert!(found.binaries.iter().any(|b| b.name == "x"), "{found:?}");
    assert_eq!(watch.follow(&found), []);
}

#[test]
fn a_file_that_gets_the_inode_number_of_the_one_removed() {
    let h = host();
    executable(&h, "/usr/bin/runc");
    let mut w = Watching::new(h);
    for _ in 0..5 {
        // ext4 gives the number out again at once; the mark went with the old file.
        fs::remove_file(w.path("/usr/bin/runc")).unwrap();
        executable(&w.host, "/usr/bin/runc");
        w.wait_found("/usr/bin/runc");
        w.wait_gone("/usr/bin/runc");
    }
}

#[test]
fn a_limit_on_watches_is_a_warning_with_its_remedy() {
    const NAME: &str = "a_limit_on_watches_is_a_warning_with_its_remedy";
    if std::env::var_os("CONTAINERHOOK_FEW_WATCHES").is_some() {
        let h = host();
        executable(&h, "/usr/bin/runc");
        executable(&h, "/var/lib/rancher/rke2/bin/runc");
        let mut watch = Watch::new().unwrap();
        watch.follow(&discover(&search(&h)));
        let warnings = watch.warnings();
        assert_eq!(warnings.len(), 1, "one, not one for each directory");
        assert!(warnings[0].message.contains("sysctl fs.inotify.max_user_watches="), "{warnings:?}");
        return;
    }
    // The limit is of a user namespace, so that of a new one can be lowered without harm to anybody.
    let script = "echo 3 > /proc/sys/user/max_inotify_watches || exit 42; exec \"$@\"";
    let exe = std::env::current_exe().unwrap();
    let status = std::process::Command::new("unshare")
        .args(["-Ur", "sh", "-c", script, "sh"])
        .arg(exe)
        .args(["--exact", &format!("runtime::watch::tests::{NAME}")])
        .env("CONTAINERHOOK_FEW_WATCHES", "1")
        .output();
    match status {
        Ok(output) if output.status.success() => {
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
        }
        Ok(output) if output.status.code() == Some(101) => panic!("{output:?}"),
        other => crate::runtime::tests::skipped(NAME, &format!("no user namespace: {other:?}")),
    }
}
