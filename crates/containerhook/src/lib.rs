//! Placeholder.

#[allow(dead_code)]
mod bundle;
mod change;
#[allow(dead_code, unreachable_pub)]
mod config;
#[allow(dead_code)]
mod entrypoint;
#[allow(dead_code, unreachable_pub, unused_imports)]
mod metadata;
pub use change::{ChangeError, ConfigChange, Device, HookKind};
pub use config::{Config, ConfigError};
pub use metadata::{Engine, Kubernetes};
