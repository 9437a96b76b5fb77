//! Lives played through without a kernel.
