//! Placeholder.

#[allow(dead_code)]
mod bundle;
#[allow(dead_code, unreachable_pub)]
mod config;
#[allow(dead_code)]
mod entrypoint;
