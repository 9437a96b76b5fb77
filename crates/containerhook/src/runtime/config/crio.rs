//! CRI-O's `crio.conf` and its drop-ins.

use toml::de::DeTable;

use super::{Named, Reader, table};
use crate::runtime::Role;

pub(super) fn read(reader: &mut Reader<'_>, config: &DeTable<'_>) {
    let Some(runtime) = table(config, &["crio", "runtime"]) else { return };
    reader.value(runtime.get("conmon"), Role::Monitor, false);
    // Before 1.13, and for what was not trusted.
    reader.value(runtime.get("runtime"), Role::Runtime, true);
    reader.value(runtime.get("runtime_untrusted_workload"), Role::Runtime, false);
    let Some(runtimes) = table(runtime, &["runtimes"]) else { return };
    for (name, handler) in runtimes {
        let Some(handler) = handler.get_ref().as_table() else { continue };
        let text = |key: &str| handler.get(key).and_then(|v| v.get_ref().as_str());
        reader.value(handler.get("monitor_path"), Role::Monitor, false);
        // Of a virtual machine the path is a shim, whose command line is another one.
        if text("runtime_type") == Some("vm") {
            continue;
        }
        if text("runtime_path").is_some_and(|p| !p.is_empty()) {
            reader.value(handler.get("runtime_path"), Role::Runtime, true);
        } else {
            // An empty path means that the handler's name is looked for in PATH.
            let (value, line) = (name.get_ref().to_string(), Some(reader.line(&name.span())));
            reader.named(Named { value, role: Role::Runtime, line, needed: false });
        }
    }
}
