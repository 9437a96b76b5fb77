use super::*;
use proptest::prelude::*;

fn config(text: &str) -> Config {
    Config::from_bytes(text).unwrap()
}

fn outline(text: &str) -> Outline {
    config(text).outline().clone()
}

#[test]
fn the_outline_of_a_real_config() {
    let outline = outline(
        r#"{
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": true, "user": {"uid": 33, "gid": 34, "additionalGids": [1]},
            "args": ["sh", "-c", "echo \"\u00e9\""], "env": ["PATH=/bin", "A=1=2", "A=3"], "cwd": "/srv"
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sbin/docker-init", "type": "bind", "source": "/usr/bin/docker-init", "options": ["bind", "ro"]},
            {"destination": "/x", "source": "/y", "options": ["rbind"]}
        ],
        "hooks": {"prestart": []},
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
            "cgroupsPath": "/kubepods/x",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/n"}, {"type": "ipc", "path": ""}]
        }
    }"#,
    );
    assert_eq!(outline.args, ["sh", "-c", "echo \"é\""]);
    assert_eq!((outline.env("PATH"), outline.env("A"), outline.env("B")), (Some("/bin"), Some("3"), None));
    assert_eq!(outline.cwd.as_deref(), Some("/srv"));
    assert_eq!(outline.user, Some(User { uid: 33, gid: 34, additional_gids: vec![1] }));
    assert!(outline.terminal && !outline.hooks && !outline.ambiguous);
    assert_eq!(outline.root, Some(Root { path: "rootfs".into(), readonly: true }));
    assert_eq!(outline.mounts.iter().map(Mount::is_bind).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(outline.annotation("io.kubernetes.cri.container-type"), Some("container"));
    assert_eq!(outline.cgroups_path.as_deref(), Some("/kubepods/x"));
    assert_eq!(outline.uid_mappings, [IdMapping { container: 0, host: 100_000, size: 65_536 }]);
    assert_eq!(outline.namespaces[1].path.as_deref(), Some("/var/run/netns/n"));
    assert_eq!(outline.namespaces[2].path, None);
    assert_eq!(outline.hostname.as_deref(), Some("h"));
}

#[test]
fn one_bad_field_loses_no_other() {
    let outline = outline(
        r#"{"process": {"args": ["/bin/a", 7, null], "env": "PATH=x", "cwd": 3, "user": []}, "root": {"path": "r", "readonly": "yes"},
            "mounts": [7, {"destination": "/d", "options": {}}, {"source": "/no"}], "annotations": {"a": 1, "b": "2"},
            "linux": null, "hooks": {"poststart": [{}]}, "hostname": false}"#,
    );
    assert_eq!(outline.args, ["/bin/a", "", ""]);
    assert_eq!(outline.root, Some(Root { path: "r".into(), readonly: false }));
    assert_eq!(outline.mounts, [Mount { destination: "/d".into(), ..Mount::default() }]);
    assert_eq!(outline.annotations, [("b".into(), "2".into())]);
    assert!(outline.env.is_empty() && outline.hostname.is_none() && !outline.hooks);
}

#[test]
fn hooks_that_run_before_the_entrypoint() {
    assert!(outline(r#"{"hooks":{"createContainer":[{"path":"/x"}]}}"#).hooks);
    assert!(!outline(r#"{"hooks":{"poststop":[{"path":"/x"}],"prestart":null}}"#).hooks);
}

#[test]
fn what_runtimes_read_differently_is_ambiguous() {
    for text in [
        r#"{"process":{"args":["/a"]},"process":{"args":["/b"]}}"#,
        r#"{"process":{"args":["/a"],"args":["/b"]}}"#,
        r#"{"process":{"args":["/a"]},"Process":{"args":["/b"]}}"#,
        r#"{"proceſs":{"args":["/a"]}}"#,
        r#"{"mounts":[{"destination":"/a","source":"/b","Source":"/c"}]}"#,
    ] {
        assert!(outline(text).ambiguous, "{text}");
    }
    // The last one of a name counts here, as it does for runc.
    assert_eq!(outline(r#"{"process":{"args":["/a"],"args":["/b"]}}"#).args, ["/b"]);
    assert!(!outline(r#"{"process":{"Other":1},"annotations":{"a":"1","a":"2"}}"#).ambiguous);
}

#[test]
fn value_keeps_order_numbers_and_unknown_fields() {
    let text = r#"{"z":1.50,"a":18446744073709551617,"new":{"deep":[1e+400,-0.0,1E-2]}}"#;
    let config = config(text);
    assert_eq!(config.raw(), text.as_bytes());
    assert_eq!(serde_json::to_string(config.value().unwrap()).unwrap().replace("e-2", "E-2"), text);
}

#[test]
fn bytes_that_are_not_utf8_and_what_follows_the_document() {
    // runc reads both.
    let config = Config::from_bytes(*b"{\"hostname\":\"a\xffb\"} trailing").unwrap();
    assert_eq!(config.outline().hostname.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(config.value().unwrap()["hostname"], "a\u{fffd}b");
    assert_eq!(config.spec().unwrap().hostname().as_deref(), Some("a\u{fffd}b"));
}

#[test]
fn deep_nesting_neither_overflows_the_stack_nor_hides_the_rest() {
    let depth = 200_000;
    let text = format!(
        r#"{{"hostname":"h","x":{}{},"process":{{"args":["/a"]}}}}"#,
        "[".repeat(depth),
        "]".repeat(depth)
    );
    let config = config(&text);
    assert_eq!(config.outline().args, ["/a"]);
    assert_eq!(config.value(), None);
    let objects = format!("{}1{}", r#"{"process":"#.repeat(depth), "}".repeat(depth));
    assert_eq!(outline(&objects), Outline::default());
    assert!(Config::from_bytes("{\"a\":".repeat(depth)).is_err());
}

#[test]
fn huge_lists_are_bounded() {
    let text = format!(r#"{{"process":{{"args":["/a"{}]}},"hostname":"h"}}"#, ",0".repeat(1_100_000));
    let config = config(&text);
    assert_eq!(config.outline().args.len(), LIST_LIMIT);
    assert!(config.outline().ambiguous);
    assert_eq!(config.outline().hostname.as_deref(), Some("h"));
    assert_eq!(config.value(), None);
}

#[test]
fn serde_jsons_own_keys_do_not_hide_what_the_runtime_reads() {
    for key in [
        "$serde_json::private::Number",
        "$serde_json::private::RawValue",
        r"\u0024serde_json::private::RawValue",
    ] {
        let config = config(&format!(r#"{{"hostname":"h","annotations":{{"{key}":"{{}}"}}}}"#));
        assert_eq!(config.value(), None, "{key}");
        assert_eq!(config.outline().annotations.len(), 1);
    }
    let harmless = config(r#"{"annotations":{"$x":"\\","\"q":"\"","e\u0041":"$serde"},"n":[1,2]}"#);
    assert_eq!(harmless.value().unwrap()["annotations"]["$x"], "\\");
}

#[test]
fn the_specifications_types() {
    let spec = config(r#"{"ociVersion":"1.0.2","root":{"path":"r"},"hostname":"h"}"#).spec().unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("h"));
    let error = config(r#"{"ociVersion":"1.0.2","hostname":[]}"#).spec().unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn a_config_goes_to_any_thread() {
    fn anywhere<T: Send + Sync + Clone + 'static>() {}
    anywhere::<Config>();
    anywhere::<ConfigError>();
    assert_eq!(format!("{:?}", config("{}")), "Config { bytes: 2, .. }");
}

/// Arbitrary JSON with names that the outline looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "process",
        "args",
        "env",
        "cwd",
        "user",
        "uid",
        "root",
        "path",
        "mounts",
        "destination",
        "options",
        "linux",
        "namespaces",
        "uidMappings",
        "annotations",
        "hooks",
        "prestart",
        "Root",
        "x",
    ]);
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..8).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_panics_and_every_object_is_kept(value in any_json()) {
        let text = value.to_string();
        match Config::from_bytes(text.as_str()) {
            Ok(config) => {
                let _ = config.outline();
                let _ = config.spec();
                prop_assert_eq!(config.value(), Some(&value));
            }
            Err(ConfigError::NotObject { .. }) => prop_assert!(!value.is_object()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(config) = Config::from_bytes(bytes) {
            let _ = config.value();
            let _ = config.spec();
        }
    }

    #[test]
    fn no_fragment_of_json_panics(text in r#"[\[\]{}",:0-9a-z\\ ]{0,60}"#) {
        if let Ok(config) = Config::from_bytes(text) {
            let _ = config.value();
        }
    }
}
