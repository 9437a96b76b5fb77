//! Placeholder.
#![allow(dead_code, reason = "the engine that uses these parts is not there yet")]

mod bpf;
mod exec_watch;
mod exit;
mod lookup;
