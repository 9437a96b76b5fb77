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
