//! One exec of a marked stand-in, from its start until it is reaped.

use std::process::Command;

use anyhow::Result;

use crate::context::{Context, rows};
use crate::listener::Arm;
use crate::load;
use crate::result::Row;
use crate::stats::{Samples, estimate};

pub(crate) fn run(ctx: &Context) -> Result<Vec<Row>> {
    let arms =
        [Arm::None, Arm::NoneAgain, Arm::Floor, Arm::Work, Arm::hook("containerhook", &["--exec-watch"])];
    let marked = [ctx.runtime.as_path()];
    let mut found = Vec::new();
    for (group, creates) in [("a command that names no container", false), ("create", true)] {
        let once = || {
            let id = ctx.id("x");
            let mut command = if creates {
                load::create(&ctx.runtime, &ctx.state, ctx.bundle.path(), &id)
            } else {
                let mut command = Command::new(&ctx.runtime);
                command.args(["--log", "/dev/null", "features"]);
                command
            };
            load::timed(&mut command)
        };
        let samples = ctx.rounds(ctx.pick(6, 30), &arms, &marked, |_, _| {
            for _ in 0..10 {
                once()?;
            }
            (0..ctx.pick(60, 150)).map(|_| once()).collect()
        })?;
        let rows = rows(group, "µs", &arms, &samples);
        for floor in [2, 3] {
            if let Some(times) = added_ratio(&samples[4], &samples[floor], &samples[0]) {
                ctx.note(format!(
                    "{group}: containerhook adds {:.2} times ({:.2}–{:.2}) what “{}” adds.",
                    times.value,
                    times.low,
                    times.high,
                    arms[floor].name(),
                ));
            }
        }
        found.extend(rows);
    }
    Ok(found)
}

/// What `a` adds to `base` as a multiple of what `b` adds, by rounds.
fn added_ratio(a: &Samples, b: &Samples, base: &Samples) -> Option<crate::stats::Estimate> {
    let medians = |samples: &Samples| -> Vec<f64> {
        samples.0.iter().map(|round| crate::stats::median(round)).collect()
    };
    let (a, b, base) = (medians(a), medians(b), medians(base));
    let ratios: Vec<f64> = a
        .iter()
        .zip(&b)
        .zip(&base)
        .map(|((a, b), base)| (a - base) / (b - base))
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .collect();
    estimate(&ratios)
}
