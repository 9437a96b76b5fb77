//! What the crate promises, on the kernel at hand. Needs root; elsewhere each test says that it was skipped.

mod answers;
mod descriptors;
mod harness;
mod lifetime;
mod listener;
mod marks;
mod queue;
mod support;
