//! The program `containerhook`: hold, tell and look at containers from the command line.
//!
//! A file a subcommand. What several of them share: [`args`] (options), [`failure`] (exit codes and errors),
//! [`confine`] (what a listener may do), [`output`] (stdout and colours), [`signals`], and [`row`] with [`table`] (how an event looks on a terminal).
//! Everything that is shown is made from the JSON of the contract, so it can be tested without a container.

mod args;
mod board;
mod confine;
mod doctor;
mod failure;
mod field;
mod filter;
mod hooks;
mod list;
mod listener;
mod output;
mod ready;
mod row;
mod shell;
mod signals;
mod supervise;
mod systemd;
mod table;
mod template;
mod top;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::hooks::Channel;
use crate::listener::Watcher;

fn main() -> ExitCode {
    let cli = Cli::parse();
    run(cli).unwrap_or_else(|error| failure::report(&error))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    cli.global.start_log(matches!(cli.command, Command::Top(_)))?;
    if let Some(number) = cli.hooks_helper {
        return hooks::helper::run(listener::take(number)?, cli.command.hook()?.unwrap_or_default());
    }
    // Started with all rights, before any is given up.
    let hooks = match (cli.hooks, cli.command.hook()?) {
        (Some(number), _) => Some(Channel::inherited(number)?),
        (None, Some(_)) => Some(Channel::open()?),
        (None, None) => None,
    };
    if let Some(sandbox) = cli.command.sandbox() {
        sandbox.enter()?;
    }
    let watcher = match (cli.supervised, cli.command.watchdog()) {
        (Some(supervised), _) => Watcher::Supervisor(supervised.enter()?),
        (None, Some(limit)) => return supervise::run(limit, hooks.as_ref()),
        (None, None) => Watcher::of_environment()?,
    };
    if matches!(cli.command, Command::Watch(_) | Command::Top(_)) {
        listener::raise_descriptor_limit();
    }
    match cli.command {
        Command::Watch(args) => watch::run(&args, &cli.global, watcher, hooks),
        Command::Doctor(args) => doctor::run(&args, &cli.global),
        Command::Top(args) => top::run(&args, &cli.global, watcher),
        Command::List(args) => list::run(&args, &cli.global),
        Command::Ready(args) => ready::run(&args),
        Command::Verify(args) => verify::run(&args, &cli.global),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { directory } => shell::man(directory.as_deref()),
    }
}
