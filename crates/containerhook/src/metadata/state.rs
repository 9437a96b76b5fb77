//! Names that engines keep in files of their own: Docker's container name, image and labels, Podman's image.

use super::{Engine, Evidence, Kubernetes, Metadata, sandbox_name};
use crate::bundle::{Caller, read_bounded, sys};
use crate::config::{Outline, fields};
use serde_json::value::RawValue;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Docker's file has 5 KiB. Podman's has 1 KiB for each container there is.
const LIMIT: u64 = 4 << 20;

/// What an engine wrote down about a container of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineState {
    pub(crate) name: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) kubernetes: Option<Kubernetes>,
}

impl EngineState {
    /// Fills in what the annotations did not say.
    pub(crate) fn complete(self, metadata: &mut Metadata) {
        metadata.kubernetes = metadata.kubernetes.take().or(self.kubernetes);
        metadata.image = metadata.image.take().or(self.image);
        metadata.name = metadata.name.take().or(self.name);
    }
}

/// Looks the container up in its engine's own files, which only root can have written; an untrusted caller's
/// container is not looked up at all. It may block on a disk: for workers.
pub(crate) fn engine_state(
    caller: &Caller<'_>,
    evidence: &Evidence<'_>,
    metadata: &Metadata,
) -> Option<EngineState> {
    if !caller.trusted || !is_name(evidence.id) {
        return None;
    }
    match metadata.engine? {
        Engine::Docker => docker_dirs(evidence.outline?, evidence.id)
            .iter()
            .find_map(|dir| docker(caller, &dir.join("config.v2.json"))),
        Engine::Podman => podman(caller, evidence),
        _ => None,
    }
}

/// Whether a word is one file name, and none that leads elsewhere.
fn is_name(word: &str) -> bool {
    !word.is_empty() && !word.contains(['/', '\0']) && word != "." && word != ".."
}

/// Where Docker may keep what it knows of a container, the surest first.
fn docker_dirs(outline: &Outline, id: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    // DATA/containers/ID/hostname is mounted on /etc/hostname, whatever the storage driver.
    for mount in outline.mounts.iter().rev() {
        let ours = matches!(mount.destination.as_str(), "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf");
        let dir = mount.source.as_deref().and_then(|source| Path::new(source).parent());
        if let Some(dir) = dir.filter(|dir| ours && dir.ends_with(Path::new("containers").join(id))) {
            dirs.push(dir.to_owned());
            break;
        }
    }
    // A container without a network has none of these: DATA/overlay2/LAYER/merged, DATA/rootfs/overlayfs/ID.
    if let Some(root) = &outline.root {
        let drivers = [
            "overlay2",
            "overlay",
            "vfs",
            "btrfs",
            "zfs",
            "aufs",
            "fuse-overlayfs",
            "devicemapper",
            "rootfs",
        ];
        let root = Path::new(&root.path);
        let data = root
            .ancestors()
            .find(|path| path.file_name().is_some_and(|name| drivers.iter().any(|d| name == *d)));
        dirs.extend(data.and_then(Path::parent).map(|data| data.join("containers").join(id)));
    }
    dirs.push(Path::new("/var/lib/docker/containers").join(id));
    dirs
}

fn docker(caller: &Caller<'_>, path: &Path) -> Option<EngineState> {
    let text = read_roots(caller, path)?;
    let [name, config] = fields(&text, ["Name", "Config"])?.texts;
    let [image, labels] =
        config.and_then(|config| fields(config, ["Image", "Labels"])).map_or([None; 2], |f| f.texts);
    let name =
        string(name).map(|name| name.trim_start_matches('/').to_owned()).filter(|name| !name.is_empty());
    // cri-dockerd tells Docker by labels, and by a name k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
    let names = [
        "io.kubernetes.pod.namespace",
        "io.kubernetes.pod.name",
        "io.kubernetes.pod.uid",
        "io.kubernetes.container.name",
        "io.kubernetes.docker.type",
    ];
    let [namespace, pod, pod_uid, container, kind] =
        labels.and_then(|labels| fields(labels, names)).map_or([None; 5], |found| found.texts).map(string);
    let kubernetes = if pod.is_some() {
        let sandbox = kind.as_deref() == Some("podsandbox");
        Some(Kubernetes { namespace, pod, pod_uid, container: container.filter(|_| !sandbox), sandbox })
    } else {
        name.as_deref().and_then(sandbox_name).filter(|found| found.container.is_some() || found.sandbox)
    };
    let name = match &kubernetes {
        Some(Kubernetes { container: Some(container), .. }) => Some(container.clone()),
        _ => name,
    };
    Some(EngineState { name, image: string(image), kubernetes })
}

/// Podman's storage: `STORE/overlay-containers/containers.json` beside the bundle
/// `STORE/overlay-containers/ID/userdata`.
fn podman(caller: &Caller<'_>, evidence: &Evidence<'_>) -> Option<EngineState> {
    let bundle =
        evidence.bundle.filter(|bundle| bundle.ends_with(Path::new(evidence.id).join("userdata")))?;
    let text = read_roots(caller, &bundle.parent()?.parent()?.join("containers.json"))?;
    let containers: Vec<&RawValue> = serde_json::from_str(&text).ok()?;
    containers.into_iter().find_map(|container| {
        // Told apart by its text first: there may be thousands.
        if !container.get().contains(evidence.id) {
            return None;
        }
        let [id, names, metadata] = fields(container.get(), ["id", "names", "metadata"])?.texts;
        if string(id)? != evidence.id {
            return None;
        }
        let names: Option<Vec<String>> = names.and_then(|names| serde_json::from_str(names).ok());
        let metadata = string(metadata).unwrap_or_default();
        let image = fields(&metadata, ["image-name"]).and_then(|found| string(found.texts[0]));
        Some(EngineState {
            name: names.and_then(|names| names.into_iter().next()),
            image: image.filter(|image| !image.is_empty()),
            kubernetes: None,
        })
    })
}

fn string(text: Option<&str>) -> Option<String> {
    serde_json::from_str(text?).ok()
}

/// The text of a file that belongs to root, if it is one that nobody else can write.
fn read_roots(caller: &Caller<'_>, path: &Path) -> Option<String> {
    let file = caller.look_up(path, 0).ok()?;
    let stat = sys::stat(file.as_fd()).ok()?;
    if stat.uid != 0 || stat.mode & 0o022 != 0 {
        return None;
    }
    String::from_utf8(read_bounded(&file, LIMIT).ok()?).ok()
}
