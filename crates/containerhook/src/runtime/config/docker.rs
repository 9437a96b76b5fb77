//! Docker's `daemon.json`.

use serde_json::Value;

use super::containerd::by_type;
use super::{NAMES, Named, Reader};
use crate::runtime::Role;

pub(super) fn read(reader: &mut Reader<'_>) {
    // Docker takes an empty file for an empty object.
    if reader.text.trim_ascii().is_empty() {
        return;
    }
    let config: Value = match serde_json::from_str(reader.text) {
        Ok(config) => config,
        Err(error) => return reader.problem(Some(error.line() as u32), error.to_string()),
    };
    let Some(runtimes) = config.get("runtimes").and_then(Value::as_object) else { return };
    for runtime in runtimes.values().take(NAMES) {
        let text = |key: &str| runtime.pointer(key).and_then(Value::as_str);
        let named = [("/path", true), ("/options/BinaryName", true)];
        for (key, needed) in named {
            if let Some(value) = text(key) {
                let (value, line) = (value.to_owned(), line_of(reader, value));
                reader.named(Named { value, role: Role::Runtime, line, needed });
            }
        }
        if let Some(value) = text("/runtimeType").and_then(by_type) {
            reader.named(Named { value, role: Role::Runtime, line: None, needed: false });
        }
    }
}

/// serde_json keeps no positions; a path is long enough to be found again.
fn line_of(reader: &Reader<'_>, value: &str) -> Option<u32> {
    let at = reader.text.find(&serde_json::to_string(value).ok()?)?;
    Some(reader.line(&(at..at)))
}
