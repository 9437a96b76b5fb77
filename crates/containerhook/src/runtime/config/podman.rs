//! Podman's and buildah's `containers.conf`, its drop-ins, and `libpod.conf` before it.

use toml::de::DeTable;

use super::{Reader, table};
use crate::runtime::Role;

pub(super) fn read(reader: &mut Reader<'_>, config: &DeTable<'_>) {
    // libpod.conf has no tables above these keys.
    for engine in [table(config, &["engine"]), Some(config)].into_iter().flatten() {
        reader.value(engine.get("conmon_path"), Role::Monitor, false);
        reader.value(engine.get("runtime_path"), Role::Runtime, false);
        reader.value(engine.get("runtime"), Role::Runtime, false);
        for (_, paths) in table(engine, &["runtimes"]).into_iter().flatten() {
            reader.value(Some(paths), Role::Runtime, false);
        }
    }
}
