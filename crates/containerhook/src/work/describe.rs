//! What is told of a container beside what its runtime was told.

use crate::bundle::Caller;
use crate::config::Config;
use crate::event::Container;
use crate::metadata;
use crate::proc::HostProc;

/// Adds what the configuration, the engine's own files and the caller's parent tell of the container.
pub(super) fn describe(proc: &HostProc, container: &mut Container, parent: i32, caller: Option<&Caller<'_>>) {
    container.proc = proc.clone();
    let parent = proc.program(parent);
    let config = container.config.clone();
    let evidence = metadata::Evidence {
        id: &container.id,
        outline: config.as_ref().map(Config::outline),
        bundle: container.bundle.as_deref(),
        state_root: container.state_root.as_deref(),
        parent: parent.as_deref(),
        monitor_name: container.name.as_deref(),
    };
    let mut said = metadata::of(&evidence);
    if let Some(state) = caller.and_then(|caller| metadata::engine_state(caller, &evidence, &said)) {
        state.complete(&mut said);
    }
    container.cgroup = config.as_ref().and_then(|config| metadata::cgroup_path(config.outline()));
    container.engine = said.engine;
    container.name = said.name;
    container.image = said.image;
    container.kubernetes = said.kubernetes;
}
