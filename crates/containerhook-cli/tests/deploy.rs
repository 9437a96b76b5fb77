//! What deploy/ grants is what a listener keeps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerhook::Privilege;
use testkit::skip;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// `SYS_ADMIN` and so on, as engines write them.
fn kept() -> BTreeSet<String> {
    Privilege::TO_LISTEN.iter().map(|kept| kept.to_string().trim_start_matches("CAP_").to_owned()).collect()
}

#[test]
fn the_pod_is_granted_what_a_listener_keeps() {
    let manifest = std::fs::read_to_string(deploy().join("kubernetes/base/daemonset.yaml")).unwrap();
    let line =
        manifest.lines().find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']')).unwrap();
    let granted: BTreeSet<String> = line.split(", ").map(str::to_owned).collect();
    assert_eq!(granted, kept());
    assert!(manifest.contains("drop: [ALL]"));
}

#[test]
fn the_image_is_granted_what_a_listener_keeps() {
    let file = std::fs::read_to_string(deploy().join("container/Dockerfile")).unwrap();
    let words: Vec<&str> = file.split_whitespace().collect();
    let granted = words.windows(2).filter(|two| two[0] == "--cap-add").map(|two| two[1].to_owned());
    assert_eq!(granted.collect::<BTreeSet<String>>(), kept());
}

#[test]
fn both_overlays_are_rendered() {
    for (overlay, own) in [("host-pid", "hostPID: true"), ("own-pid", "hostPID: false")] {
        let folder = deploy().join("kubernetes/overlays").join(overlay);
        let rendered = match Command::new("kubectl").arg("kustomize").arg(&folder).output() {
            Ok(rendered) => rendered,
            Err(error) => skip!("kubectl: {error}"),
        };
        let text = String::from_utf8_lossy(&rendered.stdout);
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        assert!(text.contains(own) && text.contains("namespace: kube-system"), "{text}");
    }
}
