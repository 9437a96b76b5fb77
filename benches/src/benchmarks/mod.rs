//! The benchmarks, one a file.

pub(crate) mod containers;
pub(crate) mod engines;
pub(crate) mod hold;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod resources;
pub(crate) mod throughput;

use anyhow::Result;

use crate::context::Context;
use crate::result::Row;

pub(crate) struct Benchmark {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) run: fn(&Context) -> Result<Vec<Row>>,
}

pub(crate) const ALL: &[Benchmark] = &[
    Benchmark { name: "idle", title: "What an idle listener costs the host", run: idle::run },
    Benchmark { name: "hold", title: "What one hold costs", run: hold::run },
    Benchmark { name: "containers", title: "What a real container costs", run: containers::run },
    Benchmark {
        name: "engines",
        title: "What an engine's container costs, and how soon its engine tells",
        run: engines::run,
    },
    Benchmark { name: "latency", title: "How soon a handler is told", run: latency::run },
    Benchmark { name: "throughput", title: "How many holds a second", run: throughput::run },
    Benchmark { name: "resources", title: "What the listener takes for itself", run: resources::run },
];
