//! What every benchmark is given, and the round that all of them go: each arm in turn, again and again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use testkit::{Bundle, Scratch};

use crate::listener::{Arm, Listener, Tools};
use crate::result::Row;
use crate::stats::Samples;

pub(crate) struct Context {
    pub(crate) tools: Tools,
    pub(crate) quick: bool,
    pub(crate) scratch: Scratch,
    /// Where stand-ins keep their state and write pid files: on a tmpfs, as runtimes do.
    pub(crate) state: PathBuf,
    /// A copy of the stand-in that is marked.
    pub(crate) runtime: PathBuf,
    /// One that nobody marks.
    pub(crate) plain: PathBuf,
    /// The bundle that stand-ins make containers of.
    pub(crate) bundle: Bundle,
    notes: Mutex<Vec<String>>,
    ids: AtomicU64,
}

impl Context {
    pub(crate) fn new(tools: Tools, quick: bool) -> Result<Context> {
        let scratch = Scratch::new()?;
        let copy = |name: &str| {
            let to = scratch.join(name);
            std::fs::copy(&tools.standin, &to).with_context(|| format!("making {}", to.display()))?;
            anyhow::Ok(to)
        };
        // By this name its command lines are read as runc's.
        let (runtime, plain) = (copy("runc")?, copy("plain")?);
        let state = Path::new("/run").join(scratch.name());
        std::fs::create_dir_all(state.join("state"))?;
        let bundle = Bundle::builder("bench").args(["/entry", "wait"]).edit(as_engines_write).build()?;
        std::fs::copy(&tools.standin, bundle.rootfs().join("entry"))?;
        // Stand-ins look for it in the bundle.
        std::os::unix::fs::symlink(bundle.rootfs().path(), bundle.path().join("rootfs"))?;
        Ok(Context {
            tools,
            quick,
            scratch,
            state,
            runtime,
            plain,
            bundle,
            notes: Mutex::default(),
            ids: AtomicU64::new(0),
        })
    }

    /// `quick` or `full`, as this run is.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// An id that no container had.
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    pub(crate) fn taken_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Each arm in turn, `rounds` times; every other round the other way round, so that no arm always comes first.
    /// `block` measures under the listener that it is given.
    pub(crate) fn rounds(
        &self,
        rounds: usize,
        arms: &[Arm],
        marked: &[&Path],
        mut block: impl FnMut(&Arm, Option<&mut Listener>) -> Result<Vec<f64>>,
    ) -> Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); arms.len()];
        for round in 0..rounds {
            for turn in 0..arms.len() {
                let turn = (turn + round) % arms.len();
                let at = if round % 2 == 0 { turn } else { arms.len() - 1 - turn };
                let arm = &arms[at];
                let mut listener = arm.start(&self.tools, marked, false)?;
                let found = block(arm, listener.as_mut()).with_context(|| format!("with {}", arm.name()))?;
                samples[at].0.push(found);
            }
        }
        Ok(samples)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// Rows of one group: each arm beside the first.
pub(crate) fn rows(group: &str, unit: &str, arms: &[Arm], samples: &[Samples]) -> Vec<Row> {
    let Some(base) = samples.first() else { return Vec::new() };
    let row = |(arm, found): (&Arm, &Samples)| {
        let row = Row::of(group, arm.name(), unit, found);
        if std::ptr::eq(found, base) { row } else { row.compared(found, arms[0].name(), base) }
    };
    arms.iter().zip(samples).map(row).collect()
}

/// A config of the size that Docker writes: with a seccomp profile, which runtimes of these benchmarks do not load.
fn as_engines_write(config: &mut serde_json::Value) {
    let calls: Vec<String> = (0..330).map(|n| format!("system_call_{n}")).collect();
    config["linux"]["x-seccomp"] = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}],
    });
}
