//! Container images made of a busybox root, by `tar` and `sha256sum` alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::{Rootfs, Scratch, task};

/// The image that every engine's fixture has.
pub const BUSYBOX: &str = "localhost/bb:latest";

/// The image of a pod's sandbox.
pub(crate) const PAUSE: &str = "localhost/pause:3";

/// A docker-archive, which containerd, Docker and Podman all import.
#[derive(Debug)]
pub(crate) struct Archive {
    scratch: Scratch,
}

impl Archive {
    /// A busybox that runs a shell.
    pub(crate) fn busybox() -> Result<Self> {
        Self::new(BUSYBOX, &["/bin/sh"])
    }

    /// A process that does nothing until it is killed.
    pub(crate) fn pause() -> Result<Self> {
        Self::new(PAUSE, &["/bin/sleep", "2147483647"])
    }

    fn new(name: &str, command: &[&str]) -> Result<Self> {
        let rootfs = Rootfs::busybox()?;
        let archive = Self { scratch: Scratch::new()? };
        let layer = archive.scratch.join("layer.tar");
        let tar = |folder: PathBuf, to: PathBuf, names: &[&str]| -> Result<()> {
            let mut command = Command::new("tar");
            command
                .arg("-C")
                .arg(folder)
                .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
                .arg(to)
                .args(names);
            task::run(&mut command)?.ok().map(drop)
        };
        tar(rootfs.path(), layer.clone(), &["."])?;
        let sum = task::run(Command::new("sha256sum").arg(&layer))?.ok()?.stdout;
        let digest = sum.split_whitespace().next().context("sha256sum printed nothing")?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
            // Podman builds on no image whose history has fewer steps than it has layers.
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "testkit"}],
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        fs::write(archive.scratch.join("config.json"), config.to_string())?;
        fs::write(archive.scratch.join("manifest.json"), manifest.to_string())?;
        let names = ["manifest.json", "config.json", "layer.tar"];
        tar(archive.scratch.path().to_owned(), archive.path(), &names)?;
        Ok(archive)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.join("image.tar")
    }
}
