//! containerd's `config.toml`, versions 1 to 3.

use toml::de::{DeTable, DeValue};

use super::{IMPORTS, Named, Reader};
use crate::runtime::{Role, places};

pub(super) fn read(reader: &mut Reader<'_>, config: &DeTable<'_>) {
    if let Some(imports) = config.get("imports").and_then(|v| v.get_ref().as_array()) {
        let imports = imports.iter().filter_map(|v| v.get_ref().as_str()).take(IMPORTS);
        reader.reading.imports = imports.map(str::to_owned).collect();
    }
    // The plugin that has the runtimes has another name in every version, and others may have some too. The
    // keys are the same everywhere.
    if let Some(plugins) = config.get("plugins").and_then(|v| v.get_ref().as_table()) {
        walk(reader, plugins, "");
    }
}

fn walk(reader: &mut Reader<'_>, table: &DeTable<'_>, name: &str) {
    for (key, value) in table {
        match (key.get_ref().as_ref(), value.get_ref()) {
            (key, DeValue::Table(inner)) => walk(reader, inner, key),
            ("BinaryName" | "runtime_engine", _) => reader.value(Some(value), Role::Runtime, true),
            ("runtime", _) if name.ends_with("linux") => reader.value(Some(value), Role::Runtime, true),
            ("runtime_type", DeValue::String(kind)) => {
                let line = Some(reader.line(&value.span()));
                if let Some(value) = by_type(kind) {
                    reader.named(Named { value, role: Role::Runtime, line, needed: false });
                }
            }
            _ => {}
        }
    }
}

/// `io.containerd.runsc.v1` is a shim, which executes `runsc`. Shims that are their own runtime execute nothing.
pub(super) fn by_type(kind: &str) -> Option<String> {
    let name = kind.strip_prefix("io.containerd.")?.rsplit_once(".v")?.0;
    places::RUNTIMES.contains(&name).then(|| name.to_owned())
}
