use super::*;
use crate::bundle::Caller;
use crate::bundle::tests::{path_fd, skipped_without_root, trusted};
use crate::config::Config;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsFd;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn config(annotations: &Value, more: &Value) -> Config {
    let mut value = json!({"annotations": annotations});
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Config::from_bytes(value.to_string()).unwrap()
}

fn said(annotations: &Value) -> Metadata {
    let config = config(annotations, &json!({}));
    of(&Evidence { id: ID, outline: Some(config.outline()), ..Evidence::default() })
}

fn kubernetes(namespace: &str, pod: &str, uid: &str, container: Option<&str>) -> Kubernetes {
    let some = |text: &str| Some(text.to_owned());
    Kubernetes {
        namespace: some(namespace),
        pod: some(pod),
        pod_uid: some(uid),
        container: container.map(str::to_owned),
        sandbox: container.is_none(),
    }
}

#[test]
fn engines_by_their_places() {
    let task = |root: &str, namespace: &str| format!("{root}/io.containerd.runtime.v2.task/{namespace}/{ID}");
    for (bundle, root, parent, engine, namespace) in [
        (
            task("/run/containerd", "default"),
            "/run/containerd/runc/default",
            "containerd-shim",
            "containerd",
            "default",
        ),
        (
            task("/run/containerd", "k8s.io"),
            "/run/containerd/runc/k8s.io",
            "containerd-shim",
            "containerd",
            "k8s.io",
        ),
        (
            task("/run/k3s/containerd", "k8s.io"),
            "/run/containerd/runc/k8s.io",
            "containerd-shim",
            "containerd",
            "k8s.io",
        ),
        (
            task("/run/docker/containerd/daemon", "moby"),
            "/var/run/docker/runtime-runc/moby",
            "containerd-shim",
            "docker",
            "moby",
        ),
        (
            task("/run/containerd", "moby"),
            "/var/run/docker/runtime-crun/moby",
            "containerd-shim",
            "docker",
            "moby",
        ),
        (
            task("/tmp/w/exec/containerd/daemon", "moby"),
            "/tmp/w/exec/runtime-runc/moby",
            "",
            "docker",
            "moby",
        ),
        (String::new(), "/run/docker/runtime-runc/moby", "", "docker", "moby"),
        (
            task("/run/containerd", "buildkit"),
            "/run/containerd/runc/buildkit",
            "containerd-shim",
            "buildkit",
            "buildkit",
        ),
        ("/run/containerd/io.containerd.runtime.v1.linux/moby/x".into(), "", "", "docker", "moby"),
        ("/var/lib/docker/buildkit/executor/abc".into(), "", "dockerd", "buildkit", ""),
        ("/var/lib/buildkit/runc-overlayfs/executor/abc".into(), "", "buildkitd", "buildkit", ""),
        (format!("/var/lib/containers/storage/overlay-containers/{ID}/userdata"), "", "conmon", "podman", ""),
        (
            format!("/home/u/.local/share/containers/storage/vfs-containers/{ID}/userdata"),
            "",
            "conmon",
            "podman",
            "",
        ),
        ("/var/tmp/buildah437131920".into(), "", "buildah", "buildah", ""),
        ("/var/tmp/buildah437131920".into(), "", "podman", "podman", ""),
        ("/srv/bundle".into(), "", "containerd-shim", "containerd", ""),
        ("/srv/bundle".into(), "", "bash", "", ""),
        ("/srv/executor/x".into(), "", "bash", "", ""),
        ("/srv/buildah".into(), "", "bash", "", ""),
        ("/io.containerd.runtime.v2.task/x".into(), "", "", "", ""),
        (String::new(), "/run/runc", "", "", ""),
    ] {
        let metadata = of(&Evidence {
            id: ID,
            bundle: Some(Path::new(&bundle)),
            state_root: Some(Path::new(root)),
            parent: Some(parent),
            ..Evidence::default()
        });
        assert_eq!(metadata.engine.map(|e| e.to_string()).unwrap_or_default(), engine, "{bundle} {root}");
        assert_eq!(metadata.containerd_namespace.unwrap_or_default(), namespace, "{bundle} {root}");
    }
}

#[test]
fn engines_are_told_as_the_contract_says() {
    for (engine, word) in [
        (Engine::Containerd, "containerd"),
        (Engine::Docker, "docker"),
        (Engine::Podman, "podman"),
        (Engine::CriO, "cri-o"),
        (Engine::Buildkit, "buildkit"),
        (Engine::Buildah, "buildah"),
    ] {
        assert_eq!(serde_json::to_value(engine).unwrap(), word);
        assert_eq!(engine.to_string(), word);
    }
    let told = serde_json::to_string(&kubernetes("ns", "p", "u", None)).unwrap();
    assert_eq!(told, r#"{"namespace":"ns","pod":"p","pod_uid":"u","container":null,"sandbox":true}"#);
}

#[test]
fn containerds_annotations() {
    let pod = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri.image-name": "docker.io/library/nginx:1", "io.kubernetes.cri.sandbox-id": "s",
        "io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-uid": "005f082b-5fd9-4650-8ef4-473e63bc2d13"
    });
    let metadata = said(&pod);
    assert_eq!(metadata.engine, Some(Engine::Containerd));
    assert_eq!(metadata.name.as_deref(), Some("web"));
    assert_eq!(metadata.image.as_deref(), Some("docker.io/library/nginx:1"));
    let uid = "005f082b-5fd9-4650-8ef4-473e63bc2d13";
    assert_eq!(metadata.kubernetes, Some(kubernetes("shop", "web-0", uid, Some("web"))));

    let sandbox = json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "web-0",
        "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": uid
    });
    let metadata = said(&sandbox);
    assert_eq!(metadata.kubernetes, Some(kubernetes("shop", "web-0", uid, None)));
    assert_eq!((metadata.name, metadata.image), (None, None));
}

#[test]
fn the_pods_uid_is_in_its_cgroup() {
    let uid = "005f082b-5fd9-4650-8ef4-473e63bc2d13";
    let annotations =
        json!({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "p"});
    for path in [
        format!("/kubepods/burstable/pod{uid}/{ID}"),
        format!("kubepods-besteffort-pod{}.slice:cri-containerd:{ID}", uid.replace('-', "_")),
        format!("/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope", uid.replace('-', "_")),
    ] {
        let config = config(&annotations, &json!({"linux": {"cgroupsPath": path}}));
        let metadata = of(&Evidence { outline: Some(config.outline()), ..Evidence::default() });
        assert_eq!(metadata.kubernetes.unwrap().pod_uid.as_deref(), Some(uid), "{path}");
    }
    for path in ["/podman/x", "/kubepods/podx/y", "/pod", "system.slice:podman:x"] {
        assert_eq!(pod_uid_of_cgroup(path), None, "{path}");
    }
}

#[test]
fn crios_annotations() {
    let uid = "aaaa2b4a-f398-41c0-928b-049e1cc4ec40";
    let labels = json!({"io.kubernetes.container.name": "web", "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.uid": uid})
    .to_string();
    let metadata = said(&json!({
        "io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.Labels": labels,
        "io.kubernetes.cri-o.ContainerName": format!("k8s_web_web-0_shop_{uid}_0"),
        "io.kubernetes.cri-o.ImageName": "quay.io/nginx:1", "io.kubernetes.cri-o.Image": "quay.io/nginx@sha256:1",
        "io.kubernetes.cri-o.SandboxName": format!("k8s_web-0_shop_{uid}_0")
    }));
    assert_eq!(metadata.engine, Some(Engine::CriO));
    assert_eq!((metadata.name.as_deref(), metadata.image.as_deref()), (Some("web"), Some("quay.io/nginx:1")));
    assert_eq!(metadata.kubernetes, Some(kubernetes("shop", "web-0", uid, Some("web"))));

    // A sandbox whose labels are no JSON is still told by its name.
    let metadata = said(&json!({
        "io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.Labels": "{}}",
        "io.kubernetes.cri-o.KubeName": "web-0", "io.kubernetes.cri-o.Name": format!("k8s_web-0_shop_{uid}_0")
    }));
    assert_eq!(metadata.kubernetes, Some(kubernetes("shop", "web-0", uid, None)));
}

#[test]
fn podmans_annotations() {
    let annotations = json!({"io.container.manager": "libpod", "io.kubernetes.cri-o.TTY": "false",
        "io.kubernetes.cri-o.SandboxID": ID, "io.kubernetes.cri-o.ContainerType": "container"});
    let config = config(&annotations, &json!({}));
    let metadata = of(&Evidence {
        id: ID,
        outline: Some(config.outline()),
        monitor_name: Some("fred"),
        ..Evidence::default()
    });
    assert_eq!(metadata.engine, Some(Engine::Podman));
    assert_eq!(metadata.name.as_deref(), Some("fred"));
    assert_eq!(metadata.kubernetes, None);
}

#[test]
fn nerdctls_annotations() {
    let metadata = said(&json!({"nerdctl/name": "fred", "nerdctl/namespace": "default"}));
    assert_eq!((metadata.engine, metadata.name.as_deref()), (Some(Engine::Containerd), Some("fred")));
}

#[test]
fn nothing_is_known_of_a_bare_container() {
    assert_eq!(of(&Evidence::default()), Metadata::default());
    assert_eq!(said(&json!({"x": "y"})), Metadata::default());
}

#[test]
fn cgroup_paths() {
    for (path, expected) in [
        ("/docker/x", Some("/docker/x")),
        ("relative/x", Some("/relative/x")),
        ("system.slice:docker:x", Some("/system.slice/docker-x.scope")),
        (":docker:x", Some("/system.slice/docker-x.scope")),
        ("machine.slice:libpod:x", Some("/machine.slice/libpod-x.scope")),
        ("a-b-c.slice:cri:x", Some("/a.slice/a-b.slice/a-b-c.slice/cri-x.scope")),
        ("-.slice::x", Some("/x.scope")),
        ("a:b:c:d", Some("/a:b:c:d")),
        ("", None),
    ] {
        let config = config(&json!({}), &json!({"linux": {"cgroupsPath": path}}));
        assert_eq!(cgroup_path(config.outline()).as_deref(), expected, "{path}");
    }
}

fn docker_state(caller: &Caller<'_>, config: &Config) -> Option<super::state::EngineState> {
    let evidence = Evidence { id: ID, outline: Some(config.outline()), ..Evidence::default() };
    engine_state(caller, &evidence, &Metadata { engine: Some(Engine::Docker), ..Metadata::default() })
}

#[test]
fn docker_knows_the_name() {
    let test = "docker_knows_the_name";
    if skipped_without_root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let own = data.join("containers").join(ID);
    fs::create_dir_all(&own).unwrap();
    let file = own.join("config.v2.json");
    fs::write(&file, json!({"Name": "/fred", "Config": {"Image": "bb:latest", "Labels": {}}}).to_string())
        .unwrap();
    let root = path_fd("/");
    let caller = trusted(root.as_fd(), root.as_fd());
    let by_mount = config(
        &json!({}),
        &json!({"mounts": [{"destination": "/etc/hostname", "source": own.join("hostname")}]}),
    );
    let by_root = config(&json!({}), &json!({"root": {"path": data.join("overlay2/x/merged")}}));
    for config in [&by_mount, &by_root] {
        let state = docker_state(&caller, config).unwrap();
        assert_eq!((state.name.as_deref(), state.image.as_deref()), (Some("fred"), Some("bb:latest")));
        assert_eq!(state.kubernetes, None);
        let mut metadata = Metadata::default();
        state.complete(&mut metadata);
        assert_eq!(metadata.name.as_deref(), Some("fred"));
    }

    // By cri-dockerd.
    let labels = json!({"io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.uid": "u",
        "io.kubernetes.container.name": "web", "io.kubernetes.docker.type": "container"});
    fs::write(
        &file,
        json!({"Name": "/k8s_web_p_ns_u_0", "Config": {"Image": "i", "Labels": labels}}).to_string(),
    )
    .unwrap();
    let state = docker_state(&caller, &by_root).unwrap();
    assert_eq!(state.kubernetes, Some(kubernetes("ns", "p", "u", Some("web"))));
    assert_eq!(state.name.as_deref(), Some("web"));
    fs::write(&file, json!({"Name": "/k8s_POD_p_ns_u_0", "Config": {"Labels": null}}).to_string()).unwrap();
    assert_eq!(docker_state(&caller, &by_root).unwrap().kubernetes, Some(kubernetes("ns", "p", "u", None)));

    // Not what others may have written, nor for a caller who is not believed.
    let untrusted = Caller { trusted: false, ..caller };
    assert_eq!(docker_state(&untrusted, &by_root), None);
    std::os::unix::fs::chown(&file, Some(1234), None).unwrap();
    assert_eq!(docker_state(&caller, &by_root), None);
    let up = Evidence { id: "..", outline: Some(by_root.outline()), ..Evidence::default() };
    assert_eq!(
        engine_state(&caller, &up, &Metadata { engine: Some(Engine::Docker), ..Metadata::default() }),
        None
    );
}

#[test]
fn podman_knows_the_image() {
    if skipped_without_root("podman_knows_the_image") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let containers = dir.path().join("overlay-containers");
    fs::create_dir_all(&containers).unwrap();
    let other = json!({"id": "ff", "names": [ID], "metadata": "{}"});
    let metadata = json!({"image-name": "localhost/bb:latest", "name": "fred"}).to_string();
    let own = json!({"id": ID, "names": ["fred"], "image": "x", "metadata": metadata});
    fs::write(containers.join("containers.json"), json!([other, own]).to_string()).unwrap();
    let bundle = containers.join(ID).join("userdata");
    let root = path_fd("/");
    let evidence = Evidence { id: ID, bundle: Some(&bundle), ..Evidence::default() };
    let podman = Metadata { engine: Some(Engine::Podman), ..Metadata::default() };
    let state = engine_state(&trusted(root.as_fd(), root.as_fd()), &evidence, &podman).unwrap();
    assert_eq!((state.name.as_deref(), state.image.as_deref()), (Some("fred"), Some("localhost/bb:latest")));
}

proptest! {
    #[test]
    fn no_words_panic(
        values in prop::collection::vec((prop::sample::select(vec![
            "io.kubernetes.cri-o.Labels", "io.kubernetes.cri-o.Name", "io.kubernetes.cri.container-type",
            "io.kubernetes.cri-o.SandboxName", "io.container.manager", "nerdctl/name",
        ]), "k?8?s?_?[a-z_{}\":,é]{0,20}"), 0..6),
        cgroup in "[a-z:./-]{0,30}|pod.{0,40}",
        bundle in "[a-z./]{0,30}",
        parent in ".{0,16}",
    ) {
        let annotations: serde_json::Map<String, Value> =
            values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let config = config(&annotations.into(), &json!({"linux": {"cgroupsPath": cgroup}}));
        let metadata = of(&Evidence { id: ID, outline: Some(config.outline()), bundle: Some(Path::new(&bundle)),
            state_root: Some(Path::new(&bundle)), parent: Some(&parent), monitor_name: Some(&parent) });
        let _ = cgroup_path(config.outline());
        prop_assert!(metadata.name.is_none_or(|name| !name.is_empty()));
    }
}
