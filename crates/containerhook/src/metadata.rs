//! Which engine a container belongs to, and what it is called there, without asking any engine: from the
//! annotations that engines write into the config, from the places they keep bundles in, and from who executed
//! the runtime.
//!
//! All of it is what somebody said. What an untrusted caller says of Kubernetes is no more than her word.

use crate::config::Outline;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Component, Path};

mod state;

pub(crate) use state::engine_state;

/// What asked the runtime for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Engine {
    /// containerd: by `ctr`, `nerdctl` or its Kubernetes interface (CRI).
    Containerd,
    /// Docker, also where its containers are kept by a containerd of the host.
    Docker,
    /// Podman.
    Podman,
    /// CRI-O.
    CriO,
    /// BuildKit, in Docker or alone.
    Buildkit,
    /// buildah; `podman build` too, where it cannot be told from it.
    Buildah,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::CriO => "cri-o",
            Self::Buildkit => "buildkit",
            Self::Buildah => "buildah",
        })
    }
}

/// A container's place in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Kubernetes {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The pod's uid.
    pub pod_uid: Option<String>,
    /// The container's name in the pod; a sandbox has none.
    pub container: Option<String>,
    /// Whether it is the pod's sandbox (the "pause" container) and not one of the pod's own.
    pub sandbox: bool,
}

/// What is known of a container when its runtime is executed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence<'a> {
    pub(crate) id: &'a str,
    pub(crate) outline: Option<&'a Outline>,
    /// The bundle, as its caller sees it.
    pub(crate) bundle: Option<&'a Path>,
    /// The runtime's `--root`.
    pub(crate) state_root: Option<&'a Path>,
    /// The command name of the process that executed the runtime.
    pub(crate) parent: Option<&'a str>,
    /// conmon's `--name`.
    pub(crate) monitor_name: Option<&'a str>,
}

/// What is said of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) engine: Option<Engine>,
    /// containerd's own namespace (`moby`, `k8s.io`, `default`), not Kubernetes'.
    pub(crate) containerd_namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) kubernetes: Option<Kubernetes>,
}

/// Draws the conclusions. [`engine_state`] may add to them.
pub(crate) fn of(evidence: &Evidence<'_>) -> Metadata {
    let say = Annotations(evidence.outline);
    let containerd_namespace = containerd_namespace(evidence);
    let engine = engine(evidence, &say, containerd_namespace);
    let kubernetes = kubernetes(evidence, &say, engine);
    let in_pod = kubernetes.as_ref().and_then(|kubernetes| kubernetes.container.clone());
    let monitor = evidence.monitor_name.filter(|name| !name.is_empty()).map(str::to_owned);
    let name = in_pod.or_else(|| say.first(&["nerdctl/name"])).or(match (engine, &kubernetes) {
        // CRI-O's conmon is called by a mangled name that says less than the annotations.
        (Some(Engine::CriO), Some(_)) => None,
        _ => monitor,
    });
    let image = say.first(&[
        "io.kubernetes.cri.image-name",
        "io.kubernetes.cri-o.ImageName",
        "io.kubernetes.cri-o.Image",
        "nerdctl/image",
        "org.opencontainers.image.ref.name",
    ]);
    Metadata {
        engine,
        containerd_namespace: containerd_namespace.map(str::to_owned),
        name,
        image,
        kubernetes,
    }
}

/// Where the kernel will find the container's cgroup below the hierarchy's root: a path as it stands, and systemd's
/// `slice:prefix:name` written out. `None` where the config leaves it to the runtime.
pub(crate) fn cgroup_path(outline: &Outline) -> Option<String> {
    let path = outline.cgroups_path.as_deref().filter(|path| !path.is_empty())?;
    let parts: Vec<&str> = path.split(':').collect();
    let &[slice, prefix, name] = parts.as_slice() else {
        return Some(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
    };
    // kubepods-burstable.slice lies in kubepods.slice; `-.slice` is the root.
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut full = String::new();
    let mut so_far = String::new();
    for part in stem.split('-').filter(|part| !part.is_empty()).take(64) {
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        full.push('/');
        full.push_str(&so_far);
        full.push_str(".slice");
    }
    let unit = if name.ends_with(".slice") {
        name.to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    Some(format!("{full}/{unit}"))
}

/// The config's annotations.
struct Annotations<'a>(Option<&'a Outline>);

impl<'a> Annotations<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0?.annotation(name).filter(|value| !value.is_empty())
    }

    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.get(name)).map(str::to_owned)
    }

    fn any(&self, prefix: &str) -> bool {
        self.0.is_some_and(|outline| outline.annotations.iter().any(|(name, _)| name.starts_with(prefix)))
    }
}

fn names(path: &Path) -> Vec<&str> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect()
}

/// containerd's namespace, from the shim's bundle `…/io.containerd.runtime.v2.task/NAMESPACE/ID` or from the
/// runtime's root `/run/containerd/runc/NAMESPACE`, `/run/docker/runtime-runc/moby`.
fn containerd_namespace<'a>(evidence: &Evidence<'a>) -> Option<&'a str> {
    let of_bundle = evidence.bundle.and_then(|bundle| {
        let names = names(bundle);
        let at = names.iter().rposition(|name| name.starts_with("io.containerd.runtime."))?;
        (names.len() > at + 2).then(|| names[at + 1])
    });
    of_bundle.or_else(|| {
        let names = names(evidence.state_root?);
        match names.as_slice() {
            [.., "containerd", _, namespace] => Some(*namespace),
            [.., runtime, namespace] if runtime.starts_with("runtime-") => Some(*namespace),
            _ => None,
        }
    })
}

fn engine(
    evidence: &Evidence<'_>,
    say: &Annotations<'_>,
    containerd_namespace: Option<&str>,
) -> Option<Engine> {
    let parent = evidence.parent.unwrap_or("");
    // Podman writes some of CRI-O's annotations too, so its own word goes first.
    match say.get("io.container.manager") {
        Some("libpod") => return Some(Engine::Podman),
        Some("cri-o") => return Some(Engine::CriO),
        _ => {}
    }
    if say.any("io.kubernetes.cri-o.") {
        return Some(Engine::CriO);
    }
    if say.any("io.kubernetes.cri.") || say.any("nerdctl/") {
        return Some(Engine::Containerd);
    }
    if let Some(namespace) = containerd_namespace {
        return Some(match namespace {
            // dockerd's --containerd-namespace, and that of its plugins.
            "moby" | "plugins.moby" => Engine::Docker,
            "buildkit" => Engine::Buildkit,
            _ => Engine::Containerd,
        });
    }
    let bundle = evidence.bundle.map(names).unwrap_or_default();
    match bundle.as_slice() {
        // /var/lib/docker/buildkit/executor/ID, /var/lib/buildkit/runc-overlayfs/executor/ID
        [.., above, "executor", _] if *above == "buildkit" || above.starts_with("runc-") => {
            return Some(Engine::Buildkit);
        }
        // /var/lib/containers/storage/overlay-containers/ID/userdata
        [.., containers, _, "userdata"] if containers.ends_with("-containers") => {
            return Some(Engine::Podman);
        }
        // /var/tmp/buildah437131920
        [.., last] if last.strip_prefix("buildah").is_some_and(is_number) => {
            return Some(if parent.starts_with("podman") { Engine::Podman } else { Engine::Buildah });
        }
        _ => {}
    }
    match parent {
        "buildkitd" => Some(Engine::Buildkit),
        "dockerd" | "docker-containerd-shim" | "docker-containe" => Some(Engine::Docker),
        "podman" | "conmon" => Some(Engine::Podman),
        "buildah" => Some(Engine::Buildah),
        "crio" => Some(Engine::CriO),
        // A command name has 15 letters.
        shim if shim.starts_with("containerd") => Some(Engine::Containerd),
        _ => None,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn kubernetes(evidence: &Evidence<'_>, say: &Annotations<'_>, engine: Option<Engine>) -> Option<Kubernetes> {
    // CRI-O keeps the kubelet's labels as one JSON object.
    let [namespace, pod, pod_uid, container] =
        say.get("io.kubernetes.cri-o.Labels").map(labels).unwrap_or_default();
    // What CRI-O calls a sandbox, and cri-dockerd a container: k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
    let mangled = say.get("io.kubernetes.cri-o.Name").or_else(|| say.get("io.kubernetes.cri-o.SandboxName"));
    let mangled = mangled.and_then(sandbox_name).unwrap_or_default();
    let kind = say
        .get("io.kubernetes.cri.container-type")
        .or_else(|| say.get("io.kubernetes.cri-o.ContainerType"))
        .or_else(|| say.get("io.kubernetes.docker.type"));
    let found = Kubernetes {
        namespace: namespace
            .or_else(|| {
                say.first(&[
                    "io.kubernetes.cri.sandbox-namespace",
                    "io.kubernetes.cri-o.Namespace",
                    "io.kubernetes.pod.namespace",
                ])
            })
            .or(mangled.namespace),
        pod: pod
            .or_else(|| {
                say.first(&[
                    "io.kubernetes.cri.sandbox-name",
                    "io.kubernetes.cri-o.KubeName",
                    "io.kubernetes.pod.name",
                ])
            })
            .or(mangled.pod),
        pod_uid: pod_uid
            .or_else(|| say.first(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]))
            .or(mangled.pod_uid),
        container: container
            .or_else(|| say.first(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name"])),
        sandbox: matches!(kind, Some("sandbox" | "podsandbox")),
    };
    // A pod of Podman is none of Kubernetes, though its containers name their infra container as a sandbox.
    let by_podman = engine == Some(Engine::Podman) && found.namespace.is_none();
    if by_podman || (kind.is_none() && found.pod.is_none()) {
        return None;
    }
    let pod_uid = found.pod_uid.or_else(|| {
        // containerd before 1.6 does not write it.
        evidence.outline?.cgroups_path.as_deref().and_then(pod_uid_of_cgroup)
    });
    // The kubelet labels a sandbox as a container called POD.
    let container = found.container.filter(|name| !found.sandbox && name != "POD");
    Some(Kubernetes { pod_uid, container, ..found })
}

/// The kubelet's labels for namespace, pod, pod uid and container.
fn labels(json: &str) -> [Option<String>; 4] {
    let names = [
        "io.kubernetes.pod.namespace",
        "io.kubernetes.pod.name",
        "io.kubernetes.pod.uid",
        "io.kubernetes.container.name",
    ];
    crate::config::fields(json, names)
        .map(|found| found.texts.map(|text| serde_json::from_str(text?).ok()))
        .unwrap_or_default()
}

/// Reads `k8s_POD_NAMESPACE_UID_ATTEMPT`, and with a container's name before that of the pod. None of them can
/// have an underscore.
fn sandbox_name(name: &str) -> Option<Kubernetes> {
    let parts: Vec<&str> = name.strip_prefix("k8s_")?.split('_').collect();
    let (container, rest) = match parts.as_slice() {
        [container, rest @ ..] if rest.len() == 4 => (Some(*container), rest),
        rest => (None, rest),
    };
    let &[pod, namespace, pod_uid, _] = rest else { return None };
    let some = |text: &str| Some(text.to_owned());
    Some(Kubernetes {
        namespace: some(namespace),
        pod: some(pod),
        pod_uid: some(pod_uid),
        container: container.filter(|name| *name != "POD").map(str::to_owned),
        sandbox: container == Some("POD"),
    })
}

/// The kubelet's cgroups have the pod's uid in them, with underscores under systemd:
/// `/kubepods/burstable/podUID/ID`, `kubepods-burstable-podUID.slice:cri-containerd:ID`.
fn pod_uid_of_cgroup(path: &str) -> Option<String> {
    let part = path.split(['/', ':']).find_map(|part| {
        part.strip_prefix("pod")
            .or_else(|| part.strip_suffix(".slice")?.split_once("-pod").map(|(_, uid)| uid))
    })?;
    let uid = part.replace('_', "-");
    // A uid of the API server has 36 characters, that of a static pod is a hash of 32.
    let plausible =
        uid.len() >= 32 && uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    plausible.then_some(uid)
}

#[cfg(test)]
mod tests;
