//! What the programs of the benchmarks share: the clock, and how a listener is spoken to.

pub mod clock;
pub mod protocol;
