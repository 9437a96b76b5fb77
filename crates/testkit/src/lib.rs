//! Real runtimes and engines for the tests of containerhook.
//!
//! A test says what it [`need!`]s, takes a [`watchdog()`], and builds its fixtures:
//!
//! ```no_run
//! use std::time::Duration;
//! use testkit::{Bundle, Runtime, need, watchdog};
//!
//! fn a_container_prints() -> anyhow::Result<()> {
//!     need!(Root, Runc, Busybox);
//!     let _dog = watchdog(Duration::from_secs(60));
//!     let runc = Runtime::runc()?;
//!     let bundle = Bundle::builder("c1").args(["/bin/sh", "-c", "echo hello; exit 7"]).build()?;
//!     let output = runc.run(&bundle)?;
//!     assert_eq!((output.stdout.as_str(), output.code()), ("hello\n", Some(7)));
//!     Ok(())
//! }
//! ```
//!
//! Every fixture lives in a [`Scratch`] folder of its own with a name that occurs nowhere else, so tests run beside
//! each other and beside other people's containers, and dropping a fixture (also in a panic) ends the processes,
//! mounts and cgroups that carry that name, and nothing else.
//!
//! Fixtures execute *copies* of the runtimes, so that a test marks a file that nobody else executes.
//!
//! Environment variables:
//!
//! - `CONTAINERHOOK_REQUIRE`: `1`, or a list such as `runc,docker`: what is missing fails the test instead of skipping it.
//! - `CONTAINERHOOK_SKIPS`: a file that every skipped test appends its `SKIPPED: test: reason` line to.
//! - `CONTAINERHOOK_SCRATCH`: the folder for scratch folders (default: `TMPDIR`, else `/var/tmp`).
//! - `CONTAINERHOOK_KEEP`: when set, scratch folders stay for inspection (processes and mounts still end).

mod buildah;
mod bundle;
mod containerd;
mod cri;
mod daemon;
mod docker;
mod image;
mod podman;
mod proc;
mod rootfs;
mod runtime;
mod scratch;
pub mod skip;
mod stall;
mod sys;
mod task;
mod watchdog;

pub use buildah::Buildah;
pub use bundle::{Bundle, BundleBuilder};
pub use containerd::Containerd;
pub use cri::{Cri, Pod};
pub use docker::Dockerd;
pub use image::BUSYBOX;
pub use podman::Podman;
pub use proc::{Process, processes, unique_id, wait_until};
pub use rootfs::Rootfs;
pub use runtime::{Family, Runtime, State};
pub use scratch::{Leftovers, Scratch};
pub use skip::Need;
pub use stall::Stalled;
pub use task::{Output, Task};
pub use watchdog::{Watchdog, watchdog};
