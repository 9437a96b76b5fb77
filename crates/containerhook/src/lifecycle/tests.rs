//! The lifecycle by itself: a rig plays the engine, the kernel's clock and the handler.

mod answers;
mod creation;
mod ending;
mod interleaved;
mod order;
mod rig;
