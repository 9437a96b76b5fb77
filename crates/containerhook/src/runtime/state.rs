//! What runtimes write down about a container while it lives.
//!
//! Pure: bytes of a file become a [`State`]. Which runtime wrote it shows in the fields, not in the name of the
//! directory, since wrappers and other names of one runtime share its format.

use std::path::PathBuf;

use serde::Deserialize;

/// A container's state, as its runtime told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// None where the directory's name is the id.
    pub(crate) id: Option<String>,
    pub(crate) pid: u32,
    /// In clock ticks since boot; None where the runtime does not write it.
    pub(crate) start_time: Option<u64>,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) rootfs: Option<PathBuf>,
    /// RFC 3339.
    pub(crate) created: Option<String>,
    /// The program whose format this is.
    pub(crate) runtime: &'static str,
}

/// Reads `state.json` of runc and its kin, or of youki.
pub(crate) fn parse_state_json(content: &[u8]) -> Option<State> {
    let raw: StateJson = serde_json::from_slice(content).ok()?;
    if let Some(pid) = raw.init_process_pid {
        let config = raw.config.unwrap_or_default();
        return Some(State {
            id: raw.id,
            pid: positive(pid)?,
            start_time: raw.init_process_start.as_ref().and_then(number),
            bundle: config.labels.iter().find_map(|l| l.strip_prefix("bundle=")).map(PathBuf::from),
            rootfs: config.rootfs,
            created: raw.created,
            runtime: "runc",
        });
    }
    // youki: the same file name, with the fields of the OCI state.
    raw.oci_version.as_ref()?;
    Some(State {
        id: raw.id,
        pid: positive(raw.pid?)?,
        bundle: raw.bundle,
        created: raw.created,
        runtime: "youki",
        ..State::default()
    })
}

/// Reads crun's `status`.
pub(crate) fn parse_crun_status(content: &[u8]) -> Option<State> {
    let raw: CrunStatus = serde_json::from_slice(content).ok()?;
    let rootfs = match (&raw.bundle, raw.rootfs) {
        (Some(bundle), Some(rootfs)) => Some(bundle.join(rootfs)),
        (_, rootfs) => rootfs,
    };
    Some(State {
        id: None,
        pid: positive(raw.pid)?,
        start_time: raw.process_start_time.as_ref().and_then(number),
        bundle: raw.bundle,
        rootfs,
        created: raw.created,
        runtime: "crun",
    })
}

fn positive(pid: i64) -> Option<u32> {
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

#[derive(Deserialize)]
struct StateJson {
    id: Option<String>,
    init_process_pid: Option<i64>,
    init_process_start: Option<serde_json::Value>,
    created: Option<String>,
    config: Option<RuncConfig>,
    #[serde(rename = "ociVersion")]
    oci_version: Option<String>,
    pid: Option<i64>,
    bundle: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct RuncConfig {
    rootfs: Option<PathBuf>,
    #[serde(default)]
    labels: Vec<String>,
}

#[derive(Deserialize)]
struct CrunStatus {
    pid: i64,
    #[serde(rename = "process-start-time")]
    process_start_time: Option<serde_json::Value>,
    bundle: Option<PathBuf>,
    rootfs: Option<PathBuf>,
    created: Option<String>,
}

/// runc before 1.0 wrote the start time as a string; crun writes 0 where it could not find out.
fn number(value: &serde_json::Value) -> Option<u64> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.filter(|n| *n != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runc() {
        let file = br#"{"id":"h5a","init_process_pid":21480,"init_process_start":157980,
            "created":"2026-11-23T21:34:42.450980271Z","config":{"no_pivot_root":false,"rootfs":"/b/rootfs",
            "labels":["x=y","bundle=/b"],"cgroups":{"path":"/h5a"}},"rootless":false,
            "cgroup_paths":{"":"/sys/fs/cgroup/unified/h5a"}}"#;
        let state = parse_state_json(file).unwrap();
        assert_eq!(
            state,
            State {
                id: Some("h5a".into()),
                pid: 21480,
                start_time: Some(157_980),
                bundle: Some("/b".into()),
                rootfs: Some("/b/rootfs".into()),
                created: Some("2026-11-23T21:34:42.450980271Z".into()),
                runtime: "runc",
            }
        );
    }

    #[test]
    fn runc_before_1_0() {
        let file =
            br#"{"id":"a","init_process_pid":7,"init_process_start":"99","config":{"labels":["bundle=/b"]}}"#;
        assert_eq!(parse_state_json(file).unwrap().start_time, Some(99));
    }

    #[test]
    fn youki() {
        let file = br#"{"ociVersion":"v1.0.2","id":"y","status":"running","pid":7,"bundle":"/b","annotations":{},
            "created":"2026-01-01T00:00:00Z","creator":0,"useSystemd":false,"cleanUpIntelRdtSubdirectory":false}"#;
        let state = parse_state_json(file).unwrap();
        assert_eq!((state.runtime, state.pid, state.start_time), ("youki", 7, None));
        assert_eq!(state.bundle, Some("/b".into()));
    }

    #[test]
    fn crun() {
        let file =
            br#"{"pid":21577,"process-start-time":158014,"cgroup-path":"/h5b","scope":"","rootfs":"rootfs",
            "systemd-cgroup":false,"bundle":"/b","created":"2026-11-23T21:34:42.793022Z","owner":"root",
            "detached":true,"external_descriptors":"[]"}"#;
        let state = parse_crun_status(file).unwrap();
        assert_eq!((state.runtime, state.pid, state.start_time), ("crun", 21577, Some(158_014)));
        assert_eq!(state.rootfs, Some("/b/rootfs".into()));
    }

    #[test]
    fn what_is_no_state() {
        for file in [
            &b""[..],
            b"{}",
            b"[]",
            b"null",
            b"{\"pid\":1}",
            b"{\"ociVersion\":\"1\",\"pid\":null}",
            b"{\"ociVersion\":\"1\",\"pid\":-1}",
            b"{\"init_process_pid\":0}",
            b"{\"init_process_pid\":4294967297}",
            b"{\"init_process_pid\":1e3}",
            b"\xff",
        ] {
            assert_eq!(parse_state_json(file), None, "{}", String::from_utf8_lossy(file));
        }
        assert_eq!(parse_crun_status(b"{\"pid\":\"7\"}"), None);
        let deep = "[".repeat(100_000);
        assert_eq!(parse_state_json(deep.as_bytes()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_state_makes_a_parser_panic(
            at in 0usize..300,
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..20),
        ) {
            let file = br#"{"ociVersion":"1","id":"a","pid":7,"process-start-time":158014,"bundle":"/b","rootfs":"r",
                "init_process_pid":7,"init_process_start":"99","config":{"labels":["bundle=/b"]}}"#;
            let mut file = file.to_vec();
            let start = at % file.len();
            let end = (start + bytes.len()).min(file.len());
            file.splice(start..end, bytes);
            for state in [parse_state_json(&file), parse_crun_status(&file)].into_iter().flatten() {
                proptest::prop_assert!(state.pid > 0);
            }
        }
    }
}
