//! The processors that a guest may have: its emulator, what it boots with, and what its programs are compiled by.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use testkit::skip::find_program;

use super::debs::{Apt, Mirror};
use super::guest::Qemu;
use super::image::Userland;
use super::programs::Toolchain;
use crate::{install, say};

/// A processor, by Debian's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Amd64,
    Arm64,
}

/// What runs, in the guest, besides our programs. Both runtimes are Debian's own.
const USERLAND: &[&str] = &["busybox-static", "runc", "crun"];

impl Architecture {
    pub(super) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The emulator: this machine's own, or Debian's, unpacked into `folder`.
    pub(super) fn qemu(self, folder: &Path, kvm: bool) -> Result<Qemu> {
        let accelerator = if kvm { "kvm" } else { "tcg" };
        match self {
            Self::Amd64 => Qemu::get("qemu-system-x86_64", "qemu-system-x86", folder, accelerator),
            Self::Arm64 => Qemu::get("qemu-system-aarch64", "qemu-system-arm", folder, "tcg"),
        }
    }

    /// The machine, with the kernel's console in `console`, and the script's port on our standard output.
    pub(super) fn machine(self, console: &Path) -> Vec<String> {
        let file = format!("file:{}", console.display());
        let words: Vec<&str> = match self {
            Self::Amd64 => vec!["-cpu", "max", "-serial", &file, "-serial", "stdio"],
            Self::Arm64 => {
                let port = ["-chardev", "stdio,id=script", "-device", "pci-serial,chardev=script"];
                [&["-machine", "virt", "-cpu", "cortex-a72", "-serial", &file][..], &port].concat()
            }
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// Its kernel's console and the script's port, as the kernel is told of them.
    pub(super) fn ports(self) -> &'static str {
        match self {
            Self::Amd64 => "console=ttyS0 vm.port=/dev/ttyS1",
            Self::Arm64 => "console=ttyAMA0 vm.port=/dev/ttyS0",
        }
    }

    /// busybox and the runtimes: this machine's own where it is one of these.
    pub(super) fn userland(self, mirror: &Mirror, folder: &Path) -> Result<Userland> {
        if self == Self::Amd64 {
            return Userland::of_this_machine();
        }
        let (apt, tree) = (folder.join("userland-arm64/apt"), folder.join("userland-arm64/tree"));
        let apt = Apt::of_suite(mirror, "bookworm", self.debian(), &apt)?;
        if !tree.exists() {
            say::note("downloading busybox, runc and crun for arm64");
            apt.update()?;
            let mut debs = Vec::new();
            for package in USERLAND {
                debs.extend(apt.resolve(package)?);
            }
            debs.sort_by(|a, b| a.name.cmp(&b.name));
            debs.dedup();
            // What the runtimes are linked with, and no more of a system.
            debs.retain(|deb| deb.name.starts_with("lib") || USERLAND.contains(&deb.name.as_str()));
            apt.unpack(&debs, &tree)?;
        }
        Userland::of_tree(&tree, "aarch64-linux-gnu")
    }

    /// What compiles for it. No other target's standard library comes with the one Rust that may be installed here, but
    /// Debian has its compiler's for all its architectures: its newest one is unpacked, and run with its own C library.
    pub(super) fn toolchain(self, mirror: &Mirror, folder: &Path) -> Result<Toolchain> {
        if self == Self::Amd64 {
            return Ok(Toolchain::of_this_machine());
        }
        install::packages(install::ARM64)?;
        let folder = folder.join("rust-arm64");
        let suite = "sid";
        let (host, target) = (folder.join("host"), folder.join("target"));
        if !target.exists() {
            say::note("downloading Debian unstable's rustc, with its standard library for arm64");
            let own = Apt::of_suite(mirror, suite, "amd64", &folder.join("apt-amd64"))?;
            own.update()?;
            own.unpack(&own.resolve("rustc")?, &host)?;
            let other = Apt::of_suite(mirror, suite, "arm64", &folder.join("apt-arm64"))?;
            other.update()?;
            let mut debs = other.resolve("libstd-rust-dev")?;
            debs.retain(|deb| deb.name.starts_with("libstd-rust"));
            other.unpack(&debs, &target)?;
        }
        // Both standard libraries below one root.
        let lib = Path::new("usr/lib/rustlib").join("aarch64-unknown-linux-gnu");
        let link = host.join(&lib);
        if !link.exists() {
            std::os::unix::fs::symlink(target.join(&lib), &link)
                .with_context(|| format!("making {}", link.display()))?;
        }
        let wrapper = folder.join("rustc");
        let at = host.display();
        let script = format!(
            "#!/bin/sh\nexec {at}/usr/lib64/ld-linux-x86-64.so.2 --library-path {at}/usr/lib/x86_64-linux-gnu \
             {at}/usr/bin/rustc --sysroot {at}/usr \"$@\"\n"
        );
        fs::write(&wrapper, script).with_context(|| format!("writing {}", wrapper.display()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let linker = find_program("aarch64-linux-gnu-gcc")
            .context("aarch64-linux-gnu-gcc is not installed; `apt-get install gcc-aarch64-linux-gnu`")?;
        Ok(Toolchain::cross("aarch64-unknown-linux-gnu", wrapper, linker))
    }

    /// Where its programs are built: two compilers do not share a folder.
    pub(super) fn build(self, folder: &Path) -> PathBuf {
        match self {
            Self::Amd64 => folder.join("build"),
            Self::Arm64 => folder.join("build-arm64"),
        }
    }
}
