//! BuildKit's `buildkitd.toml`.

use toml::de::DeTable;

use super::{Reader, table};
use crate::runtime::Role;

pub(super) fn read(reader: &mut Reader<'_>, config: &DeTable<'_>) {
    if let Some(worker) = table(config, &["worker", "oci"]) {
        reader.value(worker.get("binary"), Role::Runtime, true);
    }
}
