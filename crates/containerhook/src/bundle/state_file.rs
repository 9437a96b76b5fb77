//! What a runtime writes down about a container: the pid file, and its own state.

use super::{Caller, read_bounded};
use serde_json::value::RawValue;
use std::io;
use std::path::{Path, PathBuf};

/// A pid file holds ten digits and perhaps a newline.
const PID_LIMIT: u64 = 32;
/// runc writes the whole of its configuration into `state.json`: 20 KiB and more.
const STATE_LIMIT: u64 = 1 << 20;

/// Reads the pid file a caller named with `--pid-file`.
///
/// # Errors
/// With the path in the message: where there is no such file, it is not a regular one, is too long, or holds no
/// positive decimal number.
pub(crate) fn read_pid_file(caller: &Caller<'_>, path: &Path) -> io::Result<i32> {
    let text = read(caller, path, PID_LIMIT)?;
    parse_pid(&text)
        .ok_or_else(|| named(path, &io::Error::new(io::ErrorKind::InvalidData, "it holds no pid")))
}

fn parse_pid(text: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(text).ok()?.trim_ascii();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|pid| *pid > 0)
}

/// What a runtime's state file says, of any family: runc's `ROOT/ID/state.json`, crun's `ROOT/ID/status`,
/// youki's `ROOT/ID/state.json`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The init's pid, as the runtime saw it.
    pub(crate) pid: Option<i32>,
    /// The init's start time in clock ticks since boot, where the family writes it.
    pub(crate) start_time: Option<u64>,
    pub(crate) bundle: Option<PathBuf>,
    /// When it was created, in the words of the file.
    pub(crate) created: Option<String>,
}

/// Reads a runtime's state file as its caller names it.
///
/// # Errors
/// With the path in the message: where it cannot be read, is larger than 1 MiB or is not a JSON object.
pub(crate) fn read_state(caller: &Caller<'_>, path: &Path) -> io::Result<State> {
    let text = read(caller, path, STATE_LIMIT)?;
    parse_state(&text)
        .ok_or_else(|| named(path, &io::Error::new(io::ErrorKind::InvalidData, "it is not a JSON object")))
}

/// The fields of a state file; one of a wrong type is as if it were absent.
pub(crate) fn parse_state(text: &[u8]) -> Option<State> {
    let text = String::from_utf8_lossy(text);
    let [runc_pid, pid, runc_start, crun_start, bundle, created, config] = crate::config::fields(
        &text,
        [
            "init_process_pid",
            "pid",
            "init_process_start",
            "process-start-time",
            "bundle",
            "created",
            "config",
        ],
    )?
    .texts;
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    let string = |text: Option<&str>| text.and_then(|text| serde_json::from_str::<String>(text).ok());
    let pid = number(runc_pid).or_else(|| number(pid));
    let label = || {
        // runc keeps the bundle among its labels, as "bundle=/path".
        let [labels] = crate::config::fields(config?, ["labels"])?.texts;
        let labels: Vec<&RawValue> = serde_json::from_str(labels?).ok()?;
        labels.iter().find_map(|label| {
            let label = serde_json::from_str::<String>(label.get()).ok()?;
            label.strip_prefix("bundle=").map(str::to_owned)
        })
    };
    Some(State {
        pid: pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        start_time: number(runc_start).or_else(|| number(crun_start)),
        bundle: string(bundle).or_else(label).map(PathBuf::from),
        created: string(created),
    })
}

fn read(caller: &Caller<'_>, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let rights = caller.rights();
    let text = rights.and_then(|_rights| Ok(read_bounded(&caller.look_up(path, 0)?, limit)?));
    text.map_err(|error| named(path, &error))
}

/// An error whose message names the file.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
