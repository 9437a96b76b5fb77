//! The option scanner that the families share.
//!
//! Five programs read their options in four dialects (Go's `flag`, GNU `getopt_long`, clap, GLib). They
//! differ in few points, so a dialect is data ([`Dialect`]) and there is one loop. The loop is linear in the
//! number of arguments and allocates nothing but the list of positional arguments.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What an option does with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// A switch.
    Nothing,
    /// A value, in the same argument or in the next one.
    Value,
    /// A value in the same argument or none (`-t`, `--tty=yes`).
    Optional,
}

/// One option of a program and the meaning `K` it has for us.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opt<K> {
    pub(super) long: &'static str,
    /// The one-letter form; 0 where there is none.
    pub(super) short: u8,
    pub(super) takes: Takes,
    pub(super) key: K,
}

pub(super) const fn flag<K: Copy>(long: &'static str, short: u8, key: K) -> Opt<K> {
    Opt { long, short, takes: Takes::Nothing, key }
}

pub(super) const fn value<K: Copy>(long: &'static str, short: u8, key: K) -> Opt<K> {
    Opt { long, short, takes: Takes::Value, key }
}

pub(super) const fn optional<K: Copy>(long: &'static str, short: u8, key: K) -> Opt<K> {
    Opt { long, short, takes: Takes::Optional, key }
}

/// How arguments with one dash are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Short {
    /// `-bundle` is `--bundle` and `-b` is `--b`: Go's `flag` does not count dashes.
    SameAsLong,
    /// Letters may be joined; a value may be attached (`-dbDIR`): getopt.
    Attached,
    /// As `Attached`, and one `=` before the value is dropped (`-b=DIR`): clap.
    AttachedEq,
    /// Letters may be joined; a value is always the next argument: GLib.
    NextOnly,
    /// As `SameAsLong` where that makes sense of the argument, else as `Attached`: for programs nobody knows.
    Loose,
}

/// Where a program's way of reading options differs from the others'.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    pub(super) short: Short,
    /// `--bun` is `--bundle` where nothing else begins so: getopt_long.
    pub(super) abbreviations: bool,
    /// `--detach=false`: Go. Elsewhere a switch with a value is refused by the program.
    pub(super) switch_values: bool,
}

/// Go's `flag` package, urfave/cli and google/subcommands.
pub(super) const GO: Dialect =
    Dialect { short: Short::SameAsLong, abbreviations: false, switch_values: true };
/// glibc's `getopt_long` under argp.
pub(super) const GETOPT: Dialect =
    Dialect { short: Short::Attached, abbreviations: true, switch_values: false };
/// clap.
pub(super) const CLAP: Dialect =
    Dialect { short: Short::AttachedEq, abbreviations: false, switch_values: false };
/// GLib's `GOptionContext`.
pub(super) const GLIB: Dialect =
    Dialect { short: Short::NextOnly, abbreviations: false, switch_values: false };

/// Whether the word after an option that the tables do not have is taken for its value.
///
/// The program either refuses such an option, or is newer than the tables; this is for the second case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unknown {
    /// The option is a switch.
    Switch,
    /// The next word is the value, unless it is the last word: for verbs whose only positional argument is
    /// the id.
    ValueUnlessLast,
    /// The next word is the value, unless this says that it is a verb: for options before the verb.
    ValueUnless(fn(&OsStr) -> bool),
}

/// What the scan found besides options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan<'s, 'a> {
    /// The positional arguments, at most as many as were asked for.
    pub(super) positional: Vec<&'a OsStr>,
    /// What follows the last positional argument that was asked for, unread.
    pub(super) rest: &'s [&'a OsStr],
    /// The last word that was taken for the value of an unknown option.
    pub(super) guessed: Option<&'a OsStr>,
    /// An option was met that the tables do not have, or one whose value is missing: the program that the
    /// tables are of refuses the line.
    pub(super) misfit: bool,
}

/// Reads `args` until `stop_after` positional arguments were met; calls `take` for each option with its
/// value.
///
/// A switch is handed on with `Some` only where the dialect knows `--switch=VALUE`.
pub(super) fn scan<'s, 'a, K: Copy>(
    dialect: Dialect,
    tables: &[&[Opt<K>]],
    unknown: Unknown,
    stop_after: usize,
    args: &'s [&'a OsStr],
    take: &mut dyn FnMut(K, Option<&'a OsStr>),
) -> Scan<'s, 'a> {
    let mut out = Scan { positional: Vec::new(), rest: &[], guessed: None, misfit: false };
    let mut i = 0;
    while i < args.len() {
        if out.positional.len() >= stop_after {
            break;
        }
        let arg = args[i];
        i += 1;
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            let wanted = stop_after - out.positional.len();
            let end = args.len().min(i.saturating_add(wanted));
            out.positional.extend(&args[i..end]);
            i = end;
            break;
        }
        let next = args.get(i).copied();
        let consumed = match bytes {
            [b'-', b'-', name @ ..] => long(dialect, tables, name, next, take),
            [b'-', name @ ..] if !name.is_empty() => match dialect.short {
                Short::SameAsLong => long(dialect, tables, name, next, take),
                Short::Loose if find_long(dialect, tables, long_name(name)).is_some() => {
                    long(dialect, tables, name, next, take)
                }
                _ => letters(dialect, tables, name, next, take),
            },
            _ => {
                out.positional.push(arg);
                continue;
            }
        };
        match consumed {
            Consumed::One => {}
            Consumed::Two => i += 1,
            Consumed::Missing => out.misfit = true,
            Consumed::Unknown { has_value } => {
                out.misfit = true;
                let is_value = !has_value
                    && next.is_some_and(|word| {
                        !word.as_bytes().starts_with(b"-")
                            && match unknown {
                                Unknown::Switch => false,
                                Unknown::ValueUnlessLast => i + 1 < args.len(),
                                Unknown::ValueUnless(verb) => !verb(word),
                            }
                    });
                if is_value {
                    out.guessed = next;
                    i += 1;
                }
            }
        }
    }
    out.rest = args.get(i..).unwrap_or_default();
    out
}

enum Consumed {
    /// This argument.
    One,
    /// This argument and the next.
    Two,
    /// This argument, the last, and its value is missing: nothing is set.
    Missing,
    /// No table has the option; `has_value` says that it carried a value of its own.
    Unknown { has_value: bool },
}

fn long<'a, K: Copy>(
    dialect: Dialect,
    tables: &[&[Opt<K>]],
    text: &'a [u8],
    next: Option<&'a OsStr>,
    take: &mut dyn FnMut(K, Option<&'a OsStr>),
) -> Consumed {
    let name = long_name(text);
    let attached = text.get(name.len() + 1..).map(OsStr::from_bytes);
    let Some(opt) = find_long(dialect, tables, name) else {
        return Consumed::Unknown { has_value: attached.is_some() };
    };
    match (opt.takes, attached) {
        (Takes::Nothing, Some(_)) if !dialect.switch_values => Consumed::One,
        (Takes::Nothing | Takes::Optional, attached) => {
            take(opt.key, attached);
            Consumed::One
        }
        (Takes::Value, Some(attached)) => {
            take(opt.key, Some(attached));
            Consumed::One
        }
        (Takes::Value, None) if next.is_none() => Consumed::Missing,
        (Takes::Value, None) => {
            take(opt.key, next);
            Consumed::Two
        }
    }
}

fn letters<'a, K: Copy>(
    dialect: Dialect,
    tables: &[&[Opt<K>]],
    text: &'a [u8],
    next: Option<&'a OsStr>,
    take: &mut dyn FnMut(K, Option<&'a OsStr>),
) -> Consumed {
    let mut consumed = Consumed::One;
    for (at, letter) in text.iter().enumerate() {
        let Some(opt) = tables.iter().flat_map(|t| t.iter()).find(|o| o.short == *letter && o.short != 0)
        else {
            return Consumed::Unknown { has_value: at + 1 < text.len() };
        };
        if opt.takes == Takes::Nothing {
            take(opt.key, None);
            continue;
        }
        let after = &text[at + 1..];
        let attached = match dialect.short {
            Short::NextOnly => None,
            Short::AttachedEq if after.first() == Some(&b'=') => Some(&after[1..]),
            _ => Some(after).filter(|a| !a.is_empty()),
        };
        match (opt.takes, attached) {
            (Takes::Optional, None) => {
                take(opt.key, None);
                continue;
            }
            (_, Some(value)) => take(opt.key, Some(OsStr::from_bytes(value))),
            (_, None) if next.is_none() => return Consumed::Missing,
            (_, None) => {
                take(opt.key, next);
                consumed = Consumed::Two;
                if dialect.short == Short::NextOnly {
                    continue;
                }
            }
        }
        return consumed;
    }
    consumed
}

/// What stands before the first `=`.
pub(super) fn long_name(text: &[u8]) -> &[u8] {
    text.split(|&b| b == b'=').next().unwrap_or_default()
}

pub(super) fn find_long<'t, K: Copy>(
    dialect: Dialect,
    tables: &[&'t [Opt<K>]],
    name: &[u8],
) -> Option<&'t Opt<K>> {
    if name.is_empty() {
        return None;
    }
    let all = || tables.iter().flat_map(|t| t.iter());
    let exact = all().find(|o| {
        (!o.long.is_empty() && o.long.as_bytes() == name)
            || (matches!(dialect.short, Short::SameAsLong | Short::Loose)
                && o.short != 0
                && name == [o.short])
    });
    if exact.is_some() || !dialect.abbreviations {
        return exact;
    }
    // Where more than one begins so the program refuses, unless the others are newer than it: tables begin
    // with the oldest options, so the first is the one that an older program knows.
    all().find(|o| !o.long.is_empty() && o.long.as_bytes().starts_with(name))
}
