//! Engines' configurations and processes on hosts made up in a folder.

use super::*;
use crate::runtime::discover;
use crate::runtime::tests::{executable, host, link, paths, search, write};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use tempfile::TempDir;

fn sources<'a>(found: &'a Discovered, path: &str) -> &'a [Source] {
    &found.binaries.iter().find(|b| b.path == Path::new(path)).expect(path).sources
}

fn warnings(host: &TempDir, found: &Discovered) -> Vec<String> {
    let prefix = host.path().display().to_string();
    found.warnings.iter().map(|w| w.to_string().replacen(&prefix, "", 1)).collect()
}

#[test]
fn each_engine_s_configuration_gives_its_runtimes() {
    for (file, content, path) in [
        (
            "/etc/containerd/config.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.x.options]\nBinaryName = \"/srv/x\"",
            "/srv/x",
        ),
        (
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.x.options]\nBinaryName = \"/srv/x\"",
            "/srv/x",
        ),
        (
            "/var/snap/microk8s/current/args/containerd.toml",
            "[plugins.x.runtimes.y.options]\nBinaryName = \"${SNAP}/special/runc\"",
            "/snap/microk8s/current/special/runc",
        ),
        ("/etc/docker/daemon.json", r#"{"runtimes":{"x":{"path":"/srv/x"}}}"#, "/srv/x"),
        ("/etc/docker/daemon.json", r#"{"runtimes":{"x":{"path":"odd-runtime"}}}"#, "/usr/bin/odd-runtime"),
        ("/etc/crio/crio.conf", "[crio.runtime.runtimes.odd-runtime]\n", "/usr/local/bin/odd-runtime"),
        ("/etc/crio/crio.conf.d/10-x", "[crio.runtime.runtimes.x]\nruntime_path = \"/srv/x\"\n", "/srv/x"),
        ("/etc/crio/crio.conf.d/10-x.conf", "[crio.runtime]\nconmon = \"/srv/conmon\"\n", "/srv/conmon"),
        ("/etc/containers/containers.conf", "[engine]\nruntime = \"/srv/x\"\n", "/srv/x"),
        (
            "/etc/containers/containers.conf.d/1.conf",
            "[engine.runtimes]\nx = [\"/no\", \"/srv/x\"]\n",
            "/srv/x",
        ),
        ("/usr/share/containers/containers.conf", "[engine]\nconmon_path = [\"/srv/c\"]\n", "/srv/c"),
        ("/etc/buildkit/buildkitd.toml", "[worker.oci]\nbinary = \"/srv/x\"\n", "/srv/x"),
        (
            "/etc/nvidia-container-runtime/config.toml",
            "[nvidia-container-runtime]\nruntimes=[\"/srv/x\"]",
            "/srv/x",
        ),
    ] {
        let host = host();
        let written = write(&host, file, content);
        executable(&host, path);
        let found = discover(&search(&host));
        assert_eq!(paths(&found), [path], "{file}");
        assert_eq!(found.binaries[0].sources, [Source::Config(written)], "{file}");
        let role = if path.starts_with("/srv/c") { Role::Monitor } else { Role::Runtime };
        assert_eq!(found.binaries[0].role, role, "{file}");
        assert_eq!(warnings(&host, &found), [""; 0], "{file}");
        let without = discover(&Search { configs: false, ..search(&host) });
        assert_eq!(paths(&without), [""; 0], "{file}");
    }
}

#[test]
fn imports_are_followed_once_each_beside_the_file_that_names_them() {
    let host = host();
    write(&host, "/etc/containerd/config.toml", "imports = [\"../c/*.toml\", \"/etc/d.toml\"]\n");
    write(
        &host,
        "/etc/c/a.toml",
        "imports = [\"/etc/containerd/config.toml\", \"*.toml\"]\n[plugins.a]\nBinaryName = \"/srv/a\"\n",
    );
    write(&host, "/etc/d.toml", "[plugins.a]\nBinaryName = \"/srv/d\"\n");
    executable(&host, "/srv/a");
    executable(&host, "/srv/d");
    let found = discover(&search(&host));
    assert_eq!(paths(&found), ["/srv/a", "/srv/d"]);
    assert_eq!(warnings(&host, &found), [""; 0]);
}

#[test]
fn a_broken_file_is_a_warning_and_the_others_count() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    executable(&host, "/srv/x");
    write(&host, "/etc/docker/daemon.json", "{\n  \"runtimes\": oops\n}");
    write(&host, "/etc/crio/crio.conf", "[crio.runtime.runtimes.x]\nruntime_path = \"/srv/x\"\n[oops\n");
    write(&host, "/etc/containerd/config.toml", "\n\n[plugins.a]\nBinaryName = \"/srv/gone\"\n");
    let at = host.path().join("etc/containers/containers.conf");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at, FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644), 0)
        .unwrap();
    let found = discover(&search(&host));
    assert_eq!(paths(&found), ["/srv/x", "/usr/bin/runc"]);
    let told = warnings(&host, &found);
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[0], "/etc/containerd/config.toml:4: names /srv/gone, but no executable file is there");
    assert!(told[1].starts_with("/etc/docker/daemon.json:2: "), "{told:?}");
    assert!(told[2].starts_with("/etc/crio/crio.conf:3: "), "{told:?}");
    assert_eq!(told[3], "/etc/containers/containers.conf: cannot be read: not a regular file");
}

/// A process of a made-up host.
struct Process<'a> {
    pid: u32,
    comm: &'a str,
    args: &'a [&'a str],
    environ: &'a [&'a str],
    /// Where its root lies on the host, if it is another one.
    root: Option<&'a str>,
    euid: u32,
}

const ROOT: Process<'_> = Process { pid: 0, comm: "", args: &[], environ: &[], root: None, euid: 0 };

fn process(host: &TempDir, process: &Process<'_>) {
    let dir = format!("/proc/{}", process.pid);
    if !host.path().join("proc/1").exists() {
        write(host, "/proc/1/ns/mnt", "host");
    }
    write(host, &format!("{dir}/comm"), format!("{}\n", process.comm));
    write(host, &format!("{dir}/cmdline"), process.args.iter().map(|a| format!("{a}\0")).collect::<String>());
    write(
        host,
        &format!("{dir}/environ"),
        process.environ.iter().map(|a| format!("{a}\0")).collect::<String>(),
    );
    let status = format!(
        "Uid:\t{0}\t{0}\t{0}\t{0}\nNSpid:\t{1}\nCapEff:\tffffffffffffffff\n",
        process.euid, process.pid
    );
    write(host, &format!("{dir}/status"), status);
    link(host, &format!("{dir}/cwd"), "/");
    let ns = host.path().join(&dir[1..]).join("ns/mnt");
    fs::create_dir_all(ns.parent().unwrap()).unwrap();
    let root = host.path().join(&dir[1..]).join("root");
    match process.root {
        None => {
            symlink("../../1/ns/mnt", ns).unwrap();
            symlink(host.path(), root).unwrap();
        }
        Some(other) => {
            fs::write(ns, "other").unwrap();
            let other = host.path().join(&other[1..]);
            fs::create_dir_all(&other).unwrap();
            symlink(other, root).unwrap();
        }
    }
}

#[test]
fn a_running_engine_tells_more_by_its_arguments() {
    for (comm, args, path) in [
        ("dockerd", &["dockerd", "--config-file=/srv/daemon.json"][..], "/srv/of-json"),
        ("dockerd", &["dockerd", "--add-runtime", "x=/srv/added"], "/srv/added"),
        ("containerd", &["containerd", "-c", "/srv/c.toml"], "/srv/of-toml"),
        ("crio", &["crio", "--runtimes", "a:/srv/added:/run/a,b:", "--config-dir", "/none"], "/srv/added"),
        ("crio", &["crio", "-d", "/srv/crio.d"], "/srv/of-crio"),
        ("conmon", &["conmon", "-c", "id", "-r", "/srv/added"], "/srv/added"),
        ("podman", &["podman", "--runtime", "/srv/added", "run"], "/srv/added"),
        ("buildkitd", &["buildkitd", "--oci-worker-binary=/srv/added"], "/srv/added"),
        ("k3s-server", &["k3s", "server", "--data-dir", "/srv/k3s"], "/srv/k3s/data/current/bin/runc"),
        ("containerd", &["containerd"], "/srv/path/crun"),
    ] {
        let host = host();
        write(&host, "/srv/daemon.json", r#"{"runtimes":{"x":{"path":"/srv/of-json"}}}"#);
        write(&host, "/srv/c.toml", "[plugins.x]\nBinaryName = \"/srv/of-toml\"");
        write(&host, "/srv/crio.d/1", "[crio.runtime]\nruntime = \"/srv/of-crio\"");
        executable(&host, path);
        let environ = &["PATH=/srv/path:relative:/bin", "HOME=/root"];
        process(&host, &Process { pid: 7, comm, args, environ, ..ROOT });
        let found = discover(&search(&host));
        assert!(paths(&found).contains(&path), "{args:?}: {:?}", found.binaries);
        let without = discover(&Search { engines: false, ..search(&host) });
        assert_eq!(paths(&without), [""; 0], "{args:?}");
    }
}

#[test]
fn shims_tell_which_runtime_each_bundle_has() {
    let host = host();
    executable(&host, "/srv/mine");
    let tasks = "/run/containerd/io.containerd.runtime.v2.task/default";
    write(&host, &format!("{tasks}/a/runtime"), "runc");
    write(&host, &format!("{tasks}/b/runtime"), "/srv/mine");
    process(&host, &Process { pid: 7, comm: "containerd-shim", ..ROOT });
    fs::remove_file(host.path().join("proc/7/cwd")).unwrap();
    link(&host, "/proc/7/cwd", &format!("{tasks}/a"));
    let found = discover(&search(&host));
    assert_eq!(paths(&found), ["/srv/mine"]);
    assert_eq!(sources(&found, "/srv/mine"), [Source::Engine { pid: 7, name: "containerd-shim".into() }]);
}

#[test]
fn a_nested_engine_s_runtimes_are_found_in_its_own_root() {
    let host = host();
    executable(&host, "/usr/bin/runc");
    executable(&host, "/containers/dind/usr/local/bin/runc");
    executable(&host, "/containers/dind/srv/real");
    link(&host, "/containers/dind/usr/bin/crun", "/srv/real");
    write(&host, "/containers/dind/etc/docker/daemon.json", r#"{"runtimes":{"x":{"path":"/srv/gone"}}}"#);
    for pid in [7, 8] {
        process(&host, &Process { pid, comm: "dockerd", root: Some("/containers/dind"), ..ROOT });
    }
    let found = discover(&search(&host));
    assert_eq!(paths(&found), ["/srv/real", "/usr/local/bin/runc", "/usr/bin/runc"]);
    let nested = &found.binaries[0];
    assert_eq!(nested.name, "crun");
    assert_eq!(nested.host_path, host.path().join("proc/7/root/srv/real"));
    assert_eq!(
        nested.open().map(|fd| crate::runtime::tree::stat(&fd).unwrap().inode).ok(),
        Some(nested.inode)
    );
    assert_eq!(warnings(&host, &found).len(), 2, "{:?}", found.warnings);
    assert!(warnings(&host, &found)[0].starts_with("/proc/7/root/etc/docker/daemon.json:1: names /srv/gone"));
}

#[test]
fn a_rootless_engine_cannot_have_the_host_s_files_marked() {
    if !rustix::process::geteuid().is_root() {
        return crate::runtime::tests::skipped(
            "a_rootless_engine_cannot_have_the_host_s_files_marked",
            "not root",
        );
    }
    let host = host();
    executable(&host, "/bin/sh");
    executable(&host, "/home/u/bin/runc");
    chown(host.path().join("home/u/bin/runc"), Some(12345), None).unwrap();
    link(&host, "/home/u/bin/crun", "/bin/sh");
    let args = &["podman", "--runtime", "/bin/sh"];
    let environ = &["PATH=/home/u/bin"];
    process(&host, &Process { pid: 7, comm: "podman", args, environ, euid: 12345, ..ROOT });
    process(
        &host,
        &Process { pid: 8, comm: "conmon", args: &["conmon", "-r", "/bin/sh"], euid: 12345, ..ROOT },
    );
    assert_eq!(paths(&discover(&search(&host))), ["/home/u/bin/runc"]);
}

#[test]
fn this_machine_is_searched_without_harm() {
    let found = discover(&Search::default());
    for binary in &found.binaries {
        assert!(binary.host_path.is_absolute());
    }
    for path in ["/usr/sbin/runc", "/usr/bin/crun", "/usr/bin/conmon"] {
        if Path::new(path).exists() {
            let real = fs::canonicalize(path).unwrap();
            assert!(found.binaries.iter().any(|b| b.host_path == real), "{path}");
        }
    }
}
