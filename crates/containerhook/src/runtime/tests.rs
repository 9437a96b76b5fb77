//! Discovery on hosts made up in a folder.

use super::*;
use rustix::fs::Mode;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

/// A host with nothing on it yet.
pub(super) fn host() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub(super) fn executable(host: &TempDir, path: &str) {
    executable_with(host, path, b"\x7fELF");
}

pub(super) fn executable_with(host: &TempDir, path: &str, content: &[u8]) {
    let file = write(host, path, content);
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(super) fn write(host: &TempDir, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let file = host.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

pub(super) fn link(host: &TempDir, path: &str, target: &str) {
    let file = host.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    symlink(target, file).unwrap();
}

pub(super) fn search(host: &TempDir) -> Search {
    Search { host_root: host.path().into(), ..Search::default() }
}

pub(super) fn paths(found: &Discovered) -> Vec<&str> {
    found.binaries.iter().map(|b| b.path.to_str().unwrap()).collect()
}

/// Says that a test could not run, and why.
pub(super) fn skipped(test: &str, reason: &str) {
    use std::io::Write;
    println!("SKIPPED: {test}: {reason}");
    if let Some(list) = std::env::var_os("CONTAINERHOOK_SKIPS") {
        let file = fs::File::options().append(true).create(true).open(list);
        writeln!(file.expect("the list of skipped tests"), "{test}: {reason}").unwrap();
    }
}

#[test]
fn every_place_of_the_go_package_is_searched() {
    // Its runtimePaths, v0.27 to v0.40.
    for path in [
        "/bin/runc",
        "/usr/bin/runc",
        "/usr/sbin/runc",
        "/usr/local/bin/runc",
        "/usr/local/sbin/runc",
        "/usr/lib/cri-o-runc/sbin/runc",
        "/run/torcx/unpack/docker/bin/runc",
        "/usr/bin/crun",
        "/var/lib/rancher/k3s/data/current/bin/runc",
        "/var/lib/rancher/rke2/bin/runc",
        "/var/lib/rancher/rke2/data/v1.31.4-rke2r1-0123/bin/runc",
        "/usr/libexec/crio/runc",
        "/usr/libexec/crio/crun",
        "/var/lib/k0s/bin/runc",
        "/aarch64-bottlerocket-linux-gnu/sys-root/usr/bin/runc",
        "/x86_64-bottlerocket-linux-gnu/sys-root/usr/bin/runc",
        "/snap/microk8s/current/bin/runc",
        "/usr/bin/conmon",
    ] {
        let host = host();
        executable(&host, path);
        let found = discover(&search(&host));
        assert_eq!(paths(&found), [path]);
        let role = if path.ends_with("conmon") { Role::Monitor } else { Role::Runtime };
        assert_eq!(found.binaries[0].role, role);
        assert_eq!(found.binaries[0].sources, [Source::WellKnown]);
        assert_eq!(found.warnings, []);
    }
}

#[test]
fn places_beyond_the_go_package() {
    for path in [
        "/usr/local/bin/docker-runc",
        "/opt/bin/runc",
        "/opt/containerd/bin/runc",
        "/opt/kata/bin/kata-runtime",
        "/usr/bin/youki",
        "/usr/local/bin/runsc",
        "/usr/bin/crun-wasm",
        "/usr/bin/crun-qm",
        "/usr/bin/nvidia-container-runtime",
        "/usr/bin/docker-runc-current",
        "/usr/local/sbin/runc.amd64",
        "/snap/docker/current/bin/runc",
        "/var/lib/snapd/snap/microk8s/current/bin/runc",
        "/var/lib/rancher/k3s/data/0123abcd/bin/runc",
        "/nix/store/0123-runc-1.2.4/bin/runc",
        "/nix/store/0123-conmon-2.1.12/bin/conmon",
        "/usr/libexec/podman/conmon",
        "/usr/lib/podman/conmon",
        "/usr/local/lib/podman/conmon",
        "/usr/libexec/crio/conmon",
        "/usr/local/bin/conmon",
        "/home/kubernetes/bin/runc",
    ] {
        let host = host();
        executable(&host, path);
        assert_eq!(paths(&discover(&search(&host))), [path]);
    }
}

#[test]
fn nixos_links_lead_to_the_store() {
    let host = host();
    executable(&host, "/nix/store/1-runc-1.2.4/bin/runc");
    executable(&host, "/nix/store/2-podman-wrapped/libexec/podman/conmon-2.1");
    link(&host, "/nix/store/3-system/sw/bin/runc", "/nix/store/1-runc-1.2.4/bin/runc");
    link(&host, "/nix/store/3-system/sw/bin/conmon", "/nix/store/2-podman-wrapped/libexec/podman/conmon-2.1");
    link(&host, "/run/current-system", "/nix/store/3-system");
    let found = discover(&search(&host));
    assert_eq!(
        paths(&found),
        ["/nix/store/1-runc-1.2.4/bin/runc", "/nix/store/2-podman-wrapped/libexec/podman/conmon-2.1"]
    );
    assert_eq!(found.binaries[1].name, "conmon");
    assert_eq!(found.binaries[1].role, Role::Monitor);
}

#[test]
fn one_inode_is_one_binary_however_many_ways_lead_to_it() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    link(&host, "/bin", "usr/bin");
    link(&host, "/sbin", "usr/sbin");
    link(&host, "/usr/sbin/runc", "../bin/runc");
    fs::hard_link(host.path().join("usr/bin/runc"), host.path().join("usr/bin/docker-runc")).unwrap();
    let found = discover(&Search { extra: vec!["/sbin/runc".into()], ..search(&host) });
    assert_eq!(paths(&found).len(), 1);
    assert_eq!(found.binaries[0].name, "runc");
    assert_eq!(found.binaries[0].sources, [Source::WellKnown, Source::Option]);
}

#[test]
fn what_cannot_be_executed_is_passed_by() {
    let host = host();
    fs::create_dir_all(host.path().join("usr/bin/runc")).unwrap();
    write(&host, "/usr/sbin/runc", "not executable");
    link(&host, "/usr/local/bin/runc", "/nowhere");
    link(&host, "/usr/local/sbin/runc", "runc");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        host.path().join("usr/bin/crun"),
        FileType::Fifo,
        Mode::from_raw_mode(0o755),
        0,
    )
    .unwrap();
    let found = discover(&search(&host));
    assert_eq!(paths(&found), [""; 0]);
    assert_eq!(found.warnings, []);
}

#[test]
fn a_wrapper_script_is_kept_and_flagged() {
    let host = host();
    executable_with(&host, "/usr/bin/runc", b"#!/bin/sh\nexec /usr/bin/runc.real \"$@\"\n");
    executable(&host, "/usr/local/bin/crun");
    let found = discover(&search(&host));
    let scripts: Vec<bool> = found.binaries.iter().map(|b| b.script).collect();
    assert_eq!(scripts, [true, false]);
}

#[test]
fn a_link_out_of_the_host_stays_in_it() {
    let host = host();
    // Both exist on this machine and not on that host.
    link(&host, "/usr/bin/runc", "/bin/sh");
    link(&host, "/usr/bin/crun", "../../../../../../../../bin/sh");
    assert_eq!(paths(&discover(&search(&host))), [""; 0]);
    executable(&host, "/bin/sh");
    let found = discover(&search(&host));
    assert_eq!(paths(&found), ["/bin/sh"]);
    assert_eq!(found.binaries[0].host_path, host.path().join("bin/sh"));
    assert_eq!(found.binaries[0].name, "runc");
}

#[test]
fn environment_as_the_go_package_reads_it() {
    let var = |s: &str| Some(OsString::from(s));
    assert_eq!(Search::from_vars(None, None), Search::default());
    assert_eq!(Search::from_vars(var(""), var("")), Search::default());
    let set = Search::from_vars(var("/host"), var("/opt/runc"));
    assert_eq!((set.host_root, set.only), ("/host".into(), Some("/opt/runc".into())));
}

#[test]
fn runtime_path_replaces_everything_and_the_host_root_goes_before_it_once() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    executable(&host, "/usr/bin/conmon");
    executable(&host, "/srv/real/runc");
    link(&host, "/srv/runc", "/srv/real/runc");
    for only in [PathBuf::from("/srv/runc"), host.path().join("srv/runc")] {
        let found = discover(&Search { only: Some(only), ..search(&host) });
        assert_eq!(paths(&found), ["/srv/real/runc"]);
        assert_eq!(found.binaries[0].sources, [Source::Environment]);
        assert_eq!(found.warnings, []);
    }
    let gone = discover(&Search { only: Some("/srv/gone".into()), ..search(&host) });
    assert_eq!(paths(&gone), [""; 0]);
    assert_eq!(gone.warnings.len(), 1);
    assert_eq!(gone.warnings[0].file, host.path().join("srv/gone"));
}

#[test]
fn an_option_adds_and_says_when_nothing_is_there() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    executable(&host, "/srv/mine");
    let found = discover(&Search { extra: vec!["/srv/mine".into(), "/srv/gone".into()], ..search(&host) });
    assert_eq!(paths(&found), ["/srv/mine", "/usr/bin/runc"]);
    assert_eq!(
        found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("{}/srv/gone: --runtime names it, but no executable file is there", host.path().display())]
    );
}

#[test]
fn a_binary_opens_while_it_is_the_same() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    let found = discover(&search(&host));
    let binary = &found.binaries[0];
    assert_eq!(tree::stat(&binary.open().unwrap()).unwrap().inode, binary.inode);
    executable(&host, "/usr/bin/new");
    fs::rename(host.path().join("usr/bin/new"), host.path().join("usr/bin/runc")).unwrap();
    assert_eq!(binary.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    let again = found.places.iter().flat_map(Place::find).collect::<Vec<_>>();
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].inode, binary.inode);
}

#[test]
fn one_path_alone() {
    let host = host();
    executable(&host, "/srv/strange");
    let source = Source::Engine { pid: 7, name: "x".into() };
    let found = rediscover_one(host.path(), Path::new("/srv/strange"), source.clone()).unwrap();
    assert_eq!(
        (&*found.name, found.role, &found.sources[..]),
        ("strange", Role::Runtime, &[source.clone()][..])
    );
    assert_eq!(found.host_path, host.path().join("srv/strange"));
    assert_eq!(rediscover_one(host.path(), Path::new("/srv/none"), source), None);
}

#[test]
fn a_warning_does_not_write_on_the_terminal() {
    let warning = Warning { file: "/a\u{1b}[2J".into(), line: Some(3), message: "names /x\ny".into() };
    assert_eq!(warning.to_string(), "/a\\u{1b}[2J:3: names /x\\ny");
}
