//! What engines' configurations say about runtimes.
//!
//! Pure: the bytes of a file become a [`Reading`]. Engines merge their files in ways of their own; for marks the
//! union of all is right, since a binary that is marked and never executed costs nothing. A broken file gives
//! its problems, each with its line, and whatever else could be read.

mod buildkit;
mod containerd;
mod crio;
mod docker;
mod nvidia;
mod podman;

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Role;

/// Whose configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Format {
    Containerd,
    Docker,
    Crio,
    Podman,
    Buildkit,
    Nvidia,
}

/// Where configurations lie, patterns allowed.
pub(crate) const FILES: &[(Format, &str)] = &[
    (Format::Containerd, "/etc/containerd/config.toml"),
    (Format::Containerd, "/etc/containerd/conf.d/*.toml"),
    // Docker starts a containerd of its own with this one.
    (Format::Containerd, "/run/docker/containerd/containerd.toml"),
    // k3s and RKE2 write theirs from a template, and import from the folder beside it.
    (Format::Containerd, "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"),
    (Format::Containerd, "/var/lib/rancher/rke2/agent/etc/containerd/config.toml"),
    (Format::Containerd, "/etc/k0s/containerd.toml"),
    (Format::Containerd, "/etc/k0s/containerd.d/*.toml"),
    (Format::Containerd, "/run/k0s/containerd-cri.toml"),
    (Format::Containerd, "/var/snap/microk8s/current/args/containerd.toml"),
    (Format::Containerd, "/var/snap/k8s/common/etc/containerd/config.toml"),
    // Talos.
    (Format::Containerd, "/etc/cri/containerd.toml"),
    (Format::Containerd, "/etc/cri/conf.d/*.toml"),
    (Format::Docker, "/etc/docker/daemon.json"),
    (Format::Docker, "/var/snap/docker/current/config/daemon.json"),
    (Format::Crio, "/etc/crio/crio.conf"),
    (Format::Crio, "/etc/crio/crio.conf.d/*"),
    (Format::Podman, "/usr/share/containers/containers.conf"),
    (Format::Podman, "/usr/share/containers/containers.conf.d/*.conf"),
    (Format::Podman, "/etc/containers/containers.conf"),
    (Format::Podman, "/etc/containers/containers.conf.d/*.conf"),
    (Format::Podman, "/etc/containers/containers.rootful.conf.d/*.conf"),
    // Before Podman 2.
    (Format::Podman, "/usr/share/containers/libpod.conf"),
    (Format::Podman, "/etc/containers/libpod.conf"),
    (Format::Buildkit, "/etc/buildkit/buildkitd.toml"),
    (Format::Nvidia, "/etc/nvidia-container-runtime/config.toml"),
    (Format::Nvidia, "/usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml"),
];

/// Names and problems beyond these are passed by.
const NAMES: usize = 256;
const PROBLEMS: usize = 8;
const IMPORTS: usize = 64;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) named: Vec<Named>,
    /// Further files, as patterns; a relative one begins beside this file.
    pub(crate) imports: Vec<String>,
    /// What is wrong with it, each with the line counted from 1.
    pub(crate) problems: Vec<(Option<u32>, String)>,
}

/// A binary that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// A path, or a name to look for in PATH.
    pub(crate) value: String,
    pub(crate) role: Role,
    pub(crate) line: Option<u32>,
    /// The engine fails without it. Others are alternatives, most of which are not there.
    pub(crate) needed: bool,
}

/// Reads a file.
pub(crate) fn read(format: Format, content: &[u8]) -> Reading {
    let text = match std::str::from_utf8(content) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = content[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u32 + 1;
            let problem = (Some(line), "not UTF-8".to_owned());
            return Reading { problems: vec![problem], ..Reading::default() };
        }
    };
    let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at).collect();
    let mut reader = Reader { text, newlines, reading: Reading::default() };
    match format {
        Format::Docker => docker::read(&mut reader),
        Format::Containerd => reader.toml(containerd::read),
        Format::Crio => reader.toml(crio::read),
        Format::Podman => reader.toml(podman::read),
        Format::Buildkit => reader.toml(buildkit::read),
        Format::Nvidia => reader.toml(nvidia::read),
    }
    reader.reading
}

type Value<'a> = Spanned<DeValue<'a>>;

/// A file being read.
struct Reader<'a> {
    text: &'a str,
    newlines: Vec<usize>,
    reading: Reading,
}

impl<'a> Reader<'a> {
    fn toml(&mut self, read: impl FnOnce(&mut Self, &DeTable<'a>)) {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.problem(error.span().map(|s| self.line(&s)), error.message().to_owned());
        }
        read(self, table.get_ref());
    }

    fn line(&self, span: &Range<usize>) -> u32 {
        self.newlines.partition_point(|at| *at < span.start) as u32 + 1
    }

    fn problem(&mut self, line: Option<u32>, message: String) {
        // One mistake makes a parser stumble more than once in a line.
        let told = line.is_some() && self.reading.problems.last().is_some_and(|(last, _)| *last == line);
        if self.reading.problems.len() < PROBLEMS && !told {
            self.reading.problems.push((line, message));
        }
    }

    fn named(&mut self, named: Named) {
        let sane = !named.value.is_empty() && named.value.len() < 4096 && !named.value.contains('\0');
        if sane && self.reading.named.len() < NAMES {
            self.reading.named.push(named);
        }
    }

    /// A string, or a list of alternatives.
    fn value(&mut self, value: Option<&Value<'_>>, role: Role, needed: bool) {
        let Some(value) = value else { return };
        let line = Some(self.line(&value.span()));
        match value.get_ref() {
            DeValue::String(value) => self.named(Named { value: value.to_string(), role, line, needed }),
            DeValue::Array(values) => {
                for value in values.iter() {
                    if value.get_ref().is_str() {
                        self.value(Some(value), role, false);
                    }
                }
            }
            other => {
                let message = format!("a path is expected here, not a value of type {}", other.type_str());
                self.problem(line, message);
            }
        }
    }
}

/// A table by its path.
fn table<'t, 'a>(mut table: &'t DeTable<'a>, path: &[&str]) -> Option<&'t DeTable<'a>> {
    for key in path {
        table = table.get(*key)?.get_ref().as_table()?;
    }
    Some(table)
}

#[cfg(test)]
mod tests;
