use super::*;
use proptest::prelude::*;

fn change(text: &str) -> ConfigChange {
    ConfigChange::of(&Config::from_bytes(text).unwrap()).unwrap()
}

#[test]
fn what_is_not_touched_stays() {
    let text = r#"{"z":1.50,"ociVersion":"1.0.2","new":{"b":18446744073709551617,"a":[null,1e+3]},"annotations":{"x":"y"}}"#;
    assert_eq!(change(text).to_bytes(), text.as_bytes());
    let bytes = change(text).add_annotation("k", "v").to_bytes();
    assert_eq!(String::from_utf8(bytes).unwrap(), text.replace(r#""x":"y""#, r#""x":"y","k":"v""#));
}

#[test]
fn environment() {
    let mut change = change(r#"{"process":{"env":["A=1","AB=2","A=3","C"]}}"#);
    change.add_env("A", "4=5").add_env("D", "");
    assert_eq!(change.value()["process"]["env"], json!(["A=4=5", "AB=2", "C", "D="]));
    change.remove_env("AB").remove_env("C").remove_env("X");
    assert_eq!(change.value()["process"]["env"], json!(["A=4=5", "D="]));
}

#[test]
fn arguments() {
    let mut change = change(r#"{"process":{"args":["sh"],"cwd":"/"}}"#);
    change.add_arg("-c").add_arg("true");
    assert_eq!(change.value()["process"]["args"], json!(["sh", "-c", "true"]));
    change.set_args(["/wrap", "sh"]);
    assert_eq!(change.value(), &json!({"process": {"args": ["/wrap", "sh"], "cwd": "/"}}));
}

#[test]
fn mounts_hooks_devices_and_limits() {
    let mut change = change(
        r#"{"mounts":[{"destination":"/proc"}],"process":{"rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}]}}"#,
    );
    change
        .add_bind("/opt", "/tools", &["ro"])
        .add_mount("tmpfs", "tmpfs", "/scratch", &["size=1m"])
        .add_hook(HookKind::CreateRuntime, "/bin/hook", &["hook", "x"], &["A=1"])
        .add_device(&Device { path: "/dev/fuse", kind: 'c', major: 10, minor: 229, access: "rwm" })
        .add_rlimit("nofile", 10, 20)
        .add_rlimit("RLIMIT_CORE", 0, 0);
    let expected = json!({
        "mounts": [
            {"destination": "/proc"},
            {"destination": "/tools", "type": "bind", "source": "/opt", "options": ["rbind", "ro"]},
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}
        ],
        "process": {"rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": 20, "soft": 10}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
        ]},
        "hooks": {"createRuntime": [{"path": "/bin/hook", "args": ["hook", "x"], "env": ["A=1"]}]},
        "linux": {
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            "resources": {"devices": [{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]}
        }
    });
    assert_eq!(change.value(), &expected);
    // What comes out is what the specification's types take in.
    let whole = json!({"ociVersion": "1.0.2", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}}});
    let spec = Config::from_bytes(change.merge(&whole).to_bytes()).unwrap().spec().unwrap();
    assert_eq!(spec.hooks().as_ref().unwrap().create_runtime().as_ref().unwrap().len(), 1);
    assert_eq!(spec.mounts().as_ref().unwrap().len(), 3);
}

#[test]
fn a_capability_is_dropped_from_every_set() {
    let mut change = change(
        r#"{"process":{"capabilities":{"bounding":["CAP_NET_RAW","CAP_KILL"],"effective":["CAP_NET_RAW"],"ambient":null}}}"#,
    );
    change.drop_capability("net_raw").drop_capability("CAP_SYS_ADMIN");
    let sets = json!({"bounding": ["CAP_KILL"], "effective": [], "ambient": null});
    assert_eq!(change.value()["process"]["capabilities"], sets);
    assert_eq!(ConfigChange::from_value(json!({})).drop_capability("KILL").value(), &json!({}));
}

/// The examples of RFC 7386, appendix A.
#[test]
fn merge_patches() {
    for (target, patch, merged) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        let mut change = ConfigChange::from_value(target.clone());
        assert_eq!(change.merge(&patch).value(), &merged, "{target} {patch}");
    }
    let mut change = change(r#"{"a":1,"b":2,"c":3,"d":4}"#);
    assert_eq!(change.merge(&json!({"b": null})).to_bytes(), br#"{"a":1,"c":3,"d":4}"#);
}

#[test]
fn a_config_that_has_no_value_cannot_be_changed() {
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    assert_eq!(ConfigChange::of(&Config::from_bytes(deep).unwrap()), Err(ChangeError));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<u8>().prop_map(Value::from),
        "[a-c=]{0,4}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let names = prop::sample::select(vec![
            "process",
            "env",
            "args",
            "linux",
            "resources",
            "devices",
            "hooks",
            "x",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names, inner), 0..5).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn no_value_panics_and_every_change_is_there(value in any_value(), patch in any_value()) {
        let mut change = ConfigChange::from_value(value);
        change
            .merge(&patch)
            .add_env("A", "b")
            .add_arg("x")
            .add_bind("/a", "/b", &[])
            .add_hook(HookKind::Poststop, "/h", &[], &[])
            .add_annotation("k", "v")
            .add_device(&Device { path: "/d", kind: 'c', major: 1, minor: 2, access: "r" })
            .add_rlimit("CORE", 1, 2)
            .drop_capability("KILL")
            .remove_env("B");
        let outline = Config::from_bytes(change.to_bytes()).unwrap().outline().clone();
        prop_assert_eq!(outline.env("A"), Some("b"));
        prop_assert_eq!(outline.args.last().map(String::as_str), Some("x"));
        prop_assert_eq!(outline.annotation("k"), Some("v"));
        prop_assert_eq!(&outline.mounts.last().unwrap().destination, "/b");
    }
}
