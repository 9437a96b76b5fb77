//! Placeholder.

#[allow(dead_code)]
mod runtime;
