//! Which kernels there are to boot, and getting them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::debs::{Apt, Deb, Mirror};
use crate::say;

/// A suite of Debian's, whose cloud kernel is booted. Which version that is today, apt says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suite {
    pub(super) codename: &'static str,
    pub(super) debian: &'static str,
    /// Its kernel's series; a released suite keeps it.
    series: Option<&'static str>,
}

pub(super) const SUITES: &[Suite] = &[
    Suite { codename: "bullseye", debian: "Debian 11", series: Some("5.10") },
    Suite { codename: "bookworm", debian: "Debian 12", series: Some("6.1") },
    Suite { codename: "trixie", debian: "Debian 13", series: Some("6.12") },
    Suite { codename: "sid", debian: "Debian unstable", series: None },
];

/// A kernel, ready to boot.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) suite: Suite,
    /// The package's version without Debian's revision: `6.1.176`.
    pub(super) version: String,
    pub(super) image: PathBuf,
    /// The options it was built with, which a host has in `/boot`.
    pub(super) config: Option<PathBuf>,
    /// Modules that a guest loads, in this order.
    pub(super) modules: Vec<PathBuf>,
}

/// What tests need and Debian has as a module.
const MODULES: &[&str] = &["overlay"];

impl Suite {
    /// Whether a person may mean it by `word`: a codename, or the start of its kernel's version.
    pub(super) fn is_meant_by(&self, word: &str) -> bool {
        let is_in = |series: &str| series == word || word.starts_with(&format!("{series}."));
        match self.series {
            _ if word == self.codename => true,
            Some(series) => is_in(series),
            // Whatever no released suite has.
            None => {
                word == "unstable"
                    || word.starts_with(|c: char| c.is_ascii_digit())
                        && !SUITES.iter().any(|other| other.series.is_some() && other.is_meant_by(word))
            }
        }
    }

    /// Newer kernels let go sooner of the breakpoint that stands in for an instruction while it is replaced. Where each
    /// emulated processor has a thread of its own, one may still come upon it: Linux 7.2 once panicked so in qemu 7.2
    /// ("Oops: int3"), when a tracepoint was attached to. One thread for all of them is slower, and executes what is there.
    pub(super) fn modifies_itself_sooner(self) -> bool {
        self.series.is_none()
    }

    /// Gets its kernel, or takes the one that was got before where the mirror cannot be had.
    pub(super) fn kernel(self, mirror: &Mirror, architecture: &str, folder: &Path) -> Result<Kernel> {
        let folder = folder.join(format!("{}-{architecture}", self.codename));
        let apt = Apt::of_suite(mirror, self.codename, architecture, &folder.join("apt"))?;
        let found = apt.update().and_then(|()| apt.resolve(&format!("linux-image-cloud-{architecture}")));
        let debs: Vec<Deb> = match found {
            Ok(debs) => debs.into_iter().filter(|deb| is_kernel(&deb.name)).collect(),
            Err(error) => {
                let Some(old) = newest(&folder) else { return Err(error) };
                say::warn(&format!("{error:#}; the kernel that was got before is used"));
                return self.unpacked(&old);
            }
        };
        let image =
            debs.iter().find(|deb| deb.name.starts_with("linux-image-")).context("apt names no kernel")?;
        let at = folder.join("kernel").join(&image.version);
        if !at.exists() {
            say::note(&format!("{}: downloading Linux {}", self.debian, image.version));
            apt.unpack(&debs, &at)?;
        }
        self.unpacked(&at)
    }

    fn unpacked(self, at: &Path) -> Result<Kernel> {
        let version = at.file_name().unwrap_or_default().to_string_lossy();
        let version = version.split('-').next().unwrap_or_default().to_owned();
        let mut files = Vec::new();
        files_below(at, &mut files)?;
        let named = |start: &str| {
            let is = |path: &&PathBuf| {
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(start.as_bytes()))
            };
            files.iter().find(is).cloned()
        };
        let image = named("vmlinuz").with_context(|| format!("no kernel in {}", at.display()))?;
        let config = named("config-");
        let modules = MODULES.iter().filter_map(|name| named(&format!("{name}.ko")));
        let modules = modules.map(decompressed).collect::<Result<_>>()?;
        Ok(Kernel { suite: self, version, image, config, modules })
    }
}

/// The packages of the kernel itself: what else a real host would have besides is not booted here.
fn is_kernel(name: &str) -> bool {
    name.starts_with("linux-") && name.contains("-cloud-") && !name.starts_with("linux-base-")
}

/// The kernel that was unpacked last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder.join("kernel")).ok()?.flatten();
    let ready = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    ready.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok()).map(|entry| entry.path())
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// busybox's insmod takes no compressed module from every kernel.
fn decompressed(module: PathBuf) -> Result<PathBuf> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return Ok(module);
    }
    let plain = module.with_extension("");
    if !plain.exists() {
        let output = Command::new("xz").args(["-dc"]).arg(&module).stdin(Stdio::null()).output();
        let output = output.context("starting xz (apt-get install xz-utils provides it)")?;
        ensure!(output.status.success(), "xz could not decompress {}", module.display());
        let half = module.with_extension("half");
        fs::write(&half, output.stdout)?;
        fs::rename(&half, &plain)?;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::SUITES;

    #[test]
    fn every_word_means_one_suite() {
        let meant = |word: &str| -> Vec<&str> {
            SUITES.iter().filter(|suite| suite.is_meant_by(word)).map(|suite| suite.codename).collect()
        };
        assert_eq!(meant("5.10"), ["bullseye"]);
        assert_eq!(meant("6.1"), ["bookworm"]);
        assert_eq!(meant("6.12"), ["trixie"]);
        assert_eq!(meant("6.12.3"), ["trixie"]);
        for word in ["7", "7.2", "8.0", "unstable", "sid"] {
            assert_eq!(meant(word), ["sid"], "{word}");
        }
        assert!(meant("woody").is_empty());
    }
}
