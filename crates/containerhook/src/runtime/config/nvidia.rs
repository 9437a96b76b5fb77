//! The configuration of NVIDIA's wrapper: which runtimes it executes.

use toml::de::DeTable;

use super::{Reader, table};
use crate::runtime::Role;

pub(super) fn read(reader: &mut Reader<'_>, config: &DeTable<'_>) {
    if let Some(wrapper) = table(config, &["nvidia-container-runtime"]) {
        reader.value(wrapper.get("runtimes"), Role::Runtime, false);
    }
}
