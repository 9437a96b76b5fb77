//! Placeholder for H6's.
use serde::Serialize;
/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Engine {
    /// containerd
    Containerd,
    /// Docker
    Docker,
    /// Podman
    Podman,
    /// CRI-O
    CriO,
    /// BuildKit
    Buildkit,
    /// buildah
    Buildah,
}
/// The pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Kubernetes {
    /// its namespace
    pub namespace: Option<String>,
}
/// Clues.
pub(crate) struct Clues<'a> {
    pub(crate) annotations: &'a [(String, String)],
    pub(crate) hostname: Option<&'a str>,
    pub(crate) bundle: Option<&'a std::path::Path>,
    pub(crate) state_root: Option<&'a std::path::Path>,
    pub(crate) id: &'a str,
    pub(crate) parent: Option<&'a str>,
    pub(crate) cgroups_path: Option<&'a str>,
}
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) engine: Option<Engine>,
    pub(crate) name: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) kubernetes: Option<Kubernetes>,
}
pub(crate) fn describe(c: &Clues<'_>) -> Said {
    let _ = (c.annotations, c.hostname, c.bundle, c.state_root, c.id, c.parent, c.cgroups_path);
    Said::default()
}
