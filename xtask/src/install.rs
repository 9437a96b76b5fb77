//! Installing what is missing: Debian packages by apt, and two programs by cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use testkit::skip::find_program;

use crate::{cargo, root, say};

/// A Debian package, and the file that shows that it, or another maker's equivalent, is there.
pub(crate) struct Package {
    name: &'static str,
    shown_by: Shown,
}

enum Shown {
    Program(&'static str),
    File(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, shown_by: Shown::Program(program) }
}

pub(crate) const DEMO: &[Package] = &[program("runc", "runc"), program("busybox-static", "busybox")];

pub(crate) const TESTS: &[Package] = &[
    program("runc", "runc"),
    program("crun", "crun"),
    program("busybox-static", "busybox"),
    program("containerd", "containerd"),
    program("docker.io", "dockerd"),
    program("podman", "podman"),
    program("buildah", "buildah"),
    program("conmon", "conmon"),
    Package { name: "containernetworking-plugins", shown_by: Shown::File("/usr/lib/cni/loopback") },
    program("uidmap", "newuidmap"),
    program("slirp4netns", "slirp4netns"),
    program("clang", "clang"),
    program("llvm", "llvm-strip"),
    Package { name: "libbpf-dev", shown_by: Shown::File("/usr/include/bpf/bpf_helpers.h") },
    program("tmux", "tmux"),
    program("lxc", "lxc-execute"),
    program("bubblewrap", "bwrap"),
    program("runsc", "runsc"),
];

pub(crate) const BENCH: &[Package] = &[
    program("runc", "runc"),
    program("crun", "crun"),
    program("busybox-static", "busybox"),
    program("containerd", "containerd"),
    program("docker.io", "dockerd"),
    program("podman", "podman"),
    program("conmon", "conmon"),
];

/// What guests are made of; qemu and the kernels are unpacked, not installed.
pub(crate) const VM: &[Package] = &[
    program("runc", "runc"),
    program("crun", "crun"),
    program("busybox-static", "busybox"),
    program("xz-utils", "xz"),
    program("util-linux", "setpriv"),
];

/// What links for arm64.
pub(crate) const ARM64: &[Package] = &[
    program("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc"),
    Package { name: "libc6-dev-arm64-cross", shown_by: Shown::File("/usr/aarch64-linux-gnu/lib/libc.a") },
];

/// What youki is built with.
const FOR_YOUKI: &[Package] = &[
    program("pkg-config", "pkg-config"),
    Package { name: "libseccomp-dev", shown_by: Shown::File("/usr/include/seccomp.h") },
];

pub(crate) const BPF: &[Package] = &[
    program("clang", "clang"),
    program("llvm", "llvm-strip"),
    Package { name: "libbpf-dev", shown_by: Shown::File("/usr/include/bpf/bpf_helpers.h") },
];

impl Package {
    fn is_there(&self) -> bool {
        match self.shown_by {
            Shown::Program(name) => find_program(name).is_some(),
            Shown::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs those packages that are missing.
///
/// # Errors
/// When one is missing and cannot be installed; the message says what to install by hand.
pub(crate) fn packages(wanted: &[Package]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|p| !p.is_there()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!("this is not a Debian: install these yourself, by the names they have here: {list}");
    }
    say::step(&format!("apt-get install --no-install-recommends {list}"));
    let install = || {
        let mut command = apt();
        command.args(["install", "-y", "-q", "--no-install-recommends"]).args(&missing);
        succeeds(&mut command)
    };
    // The lists may be absent (a fresh image) or older than the mirror: only then is it worth the time to get them.
    if !install() {
        say::step("apt-get update");
        if !succeeds(apt().args(["update", "-q"])) || !install() {
            bail!(
                "apt-get could not install {list}: see its words above; as root, on Debian or Ubuntu, it should"
            );
        }
    }
    Ok(())
}

/// Installs youki, which Debian does not have.
pub(crate) fn youki() -> Result<()> {
    if has_tool("youki") {
        return Ok(());
    }
    packages(FOR_YOUKI)?;
    by_cargo("youki", &["--no-default-features", "--features", "v1,v2,seccomp"])
}

pub(crate) fn cargo_deny() -> Result<()> {
    if has_tool("cargo-deny") { Ok(()) } else { by_cargo("cargo-deny", &[]) }
}

/// Installs into `target/tools`, not into the home of whoever runs this.
fn by_cargo(name: &str, options: &[&str]) -> Result<()> {
    say::step(&format!("cargo install {name} (once; some minutes)"));
    let mut command = cargo();
    command.args(["install", name, "--locked", "--root"]).arg(tools()).args(options);
    let status = command.status().with_context(|| format!("starting cargo install {name}"))?;
    if !status.success() {
        bail!("cargo install {name} failed: see its words above");
    }
    Ok(())
}

fn tools() -> PathBuf {
    root().join("target/tools")
}

/// `PATH` with `target/tools/bin` in front.
pub(crate) fn path() -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools().join("bin")).chain(std::env::split_paths(&old));
    std::env::join_paths(folders).unwrap_or(old)
}

fn has_tool(name: &str) -> bool {
    tools().join("bin").join(name).exists() || find_program(name).is_some()
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|s| s.success())
}

/// Fails, with the words to use, when this process may not do what root may.
pub(crate) fn need_root(task: &str) -> Result<()> {
    if testkit::Need::Root.missing().is_some() {
        bail!(
            "`cargo xtask {task}` needs root, to install packages, run containers and hold executions: \
             sudo -E env \"PATH=$PATH\" cargo xtask {task}"
        );
    }
    Ok(())
}
