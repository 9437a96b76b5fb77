//! An event in words: what a person wants to see of one line of the JSON contract.
//!
//! Every word of it may come from a container's author, so nothing leaves here that could move a cursor, change a
//! colour or begin a line.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::Ink;

/// One event as it is shown. All words are clean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) event: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) pid: String,
    pub(crate) engine: String,
    pub(crate) runtime: String,
    /// How it was answered, how it ended, or what else there is to say.
    pub(crate) what: String,
    /// Something to look at: a refusal, a failure, a loss.
    pub(crate) alarming: bool,
}

impl Row {
    pub(crate) fn new(event: &Value, full_ids: bool) -> Row {
        let kind = event["event"].as_str().unwrap_or_default();
        let id = event["id"].as_str().unwrap_or_default();
        let exit = &event["exit"];
        let answer = &event["answer"];
        Row {
            event: clean(kind),
            id: if full_ids { clean(id) } else { clean(short_id(id)) },
            name: name(event),
            pid: event["pid"].as_u64().map(|pid| pid.to_string()).unwrap_or_default(),
            engine: clean(event["engine"].as_str().unwrap_or_default()),
            runtime: clean(event["runtime"]["name"].as_str().unwrap_or_default()),
            what: what(event, kind),
            alarming: matches!(kind, "lost" | "overflow")
                || answer["decision"] == "deny"
                || answer["timed_out"] == true
                || exit["oom_killed"] == true
                || exit["code"].as_u64().is_some_and(|code| code != 0)
                || exit["signal"].is_u64(),
        }
    }

    /// What tells kinds apart at a glance.
    pub(crate) fn ink(&self) -> Ink {
        match self.event.as_str() {
            "pre-create" | "exec" => Ink::Cyan,
            "created" | "started" => Ink::Green,
            "stopped" | "exec-stopped" => Ink::Yellow,
            "lost" | "overflow" => Ink::Red,
            "deleted" => Ink::Dim,
            _ => Ink::Plain,
        }
    }
}

/// The container's name, or else its place in Kubernetes.
pub(crate) fn name(event: &Value) -> String {
    if let Some(name) = event["name"].as_str() {
        return clean(name);
    }
    let kubernetes = &event["kubernetes"];
    match (kubernetes["pod"].as_str(), kubernetes["container"].as_str()) {
        (Some(pod), Some(container)) => clean(&format!("{pod}/{container}")),
        (Some(pod), None) => clean(pod),
        _ => String::new(),
    }
}

fn what(event: &Value, kind: &str) -> String {
    let mut words = Vec::new();
    if event["existing"] == true && kind == "created" {
        words.push("was there before".to_owned());
    }
    if let Some(args) = event["exec"]["args"].as_array().filter(|args| kind == "exec" && !args.is_empty()) {
        let args: Vec<&str> = args.iter().filter_map(Value::as_str).collect();
        words.push(clean(&args.join(" ")));
    }
    if matches!(kind, "stopped" | "exec-stopped") {
        words.push(exit_words(&event["exit"]));
    }
    if let Some(verb) = event["verb"].as_str() {
        words.push(format!("not {}: {}", clean(verb), exit_words(&event["exit"])));
    }
    if let Some(signal) = event["signal"].as_i64() {
        words.push(format!("{} was asked for", signal_name(signal)));
    }
    if event["limits"].is_object() {
        words.push(clean(&event["limits"].to_string()));
    }
    if event["answer"].is_object() {
        words.push(answer_words(&event["answer"]));
    } else if event["held"] == false && event["existing"] != true && matches!(kind, "pre-create" | "started")
    {
        words.push("not held".to_owned());
    }
    if event["rootless"] == true && kind == "pre-create" {
        words.push(match event["owner_uid"].as_u64() {
            Some(uid) => format!("rootless (uid {uid})"),
            None => "rootless".to_owned(),
        });
    }
    words.extend(event["detail"].as_str().map(clean));
    // Every event of the container says it again: once is enough here.
    words.extend(event["config_error"].as_str().filter(|_| kind == "pre-create").map(clean));
    words.join("; ")
}

fn answer_words(answer: &Value) -> String {
    let mut words = match answer["decision"].as_str() {
        Some("allow") => "allowed".to_owned(),
        Some("deny") => "denied".to_owned(),
        Some("change") => "changed".to_owned(),
        other => clean(other.unwrap_or("answered")),
    };
    if answer["timed_out"] == true {
        words.push_str(" (no answer in time)");
    }
    if let Some(held) = answer["held_us"].as_u64() {
        let _ = write!(words, " after {}", time_words(Duration::from_micros(held)));
    }
    if let Some(reason) = answer["reason"].as_str() {
        let _ = write!(words, ": {}", clean(reason));
    }
    words
}

/// `exit 137`, `SIGKILL, out of memory`: how a process ended.
pub(crate) fn exit_words(exit: &Value) -> String {
    let mut words = match (exit["code"].as_i64(), exit["signal"].as_i64()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => signal_name(signal),
        (None, None) => "how is not known".to_owned(),
    };
    if exit["oom_killed"] == true {
        words.push_str(", out of memory");
    }
    if exit["core_dumped"] == true {
        words.push_str(", core dumped");
    }
    words
}

/// A signal by the name it has on x86-64 and aarch64.
pub(crate) fn signal_name(signal: i64) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(signal - 1).ok().and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// A length of time with three digits or so: `85 µs`, `3.2 ms`, `12 s`, `3m 04s`, `2h 05m`, `12d 03h`.
pub(crate) fn time_words(time: Duration) -> String {
    let micros = time.as_micros();
    let seconds = time.as_secs();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..10_000_000 => format!("{:.1} s", (time.as_millis() / 100) as f64 / 10.0),
        _ if seconds < 60 => format!("{seconds} s"),
        _ if seconds < 3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// The first 12 characters of an id as engines make them (64 hexadecimal digits); others are names, and stay whole.
pub(crate) fn short_id(id: &str) -> &str {
    if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) { &id[..12] } else { id }
}

/// Words that do nothing to a terminal: what is not seen is spelled out, and no word is longer than people read.
pub(crate) fn clean(words: &str) -> String {
    const LONGEST: usize = 1024;
    let mut clean = String::with_capacity(words.len().min(LONGEST));
    for (count, character) in words.chars().enumerate() {
        if count == LONGEST {
            clean.push('…');
            break;
        }
        match character {
            '\n' => clean.push_str("\\n"),
            '\t' => clean.push_str("\\t"),
            _ if hidden(character) => clean.extend(character.escape_unicode()),
            _ => clean.push(character),
        }
    }
    clean
}

/// Breaks words into lines of at most this many cells, between words where there are spaces.
pub(crate) fn fold(words: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let line = lines.last().map_or("", String::as_str);
        let room = width.saturating_sub(UnicodeWidthStr::width(line) + usize::from(!line.is_empty()));
        let mut rest = word;
        if UnicodeWidthStr::width(word) > room && !line.is_empty() {
            lines.push(String::new());
        }
        // One that is longer than a line goes on in the next.
        while UnicodeWidthStr::width(rest) > width.max(1) {
            let mut cells = 0;
            let cut = rest.char_indices().find(|(_, character)| {
                cells += UnicodeWidthChar::width(*character).unwrap_or(0);
                cells > width.max(1)
            });
            let at = cut.map_or(rest.len(), |(at, _)| at).max(rest.chars().next().map_or(1, char::len_utf8));
            let (head, tail) = rest.split_at(at);
            if let Some(line) = lines.last_mut() {
                line.push_str(head);
            }
            lines.push(String::new());
            rest = tail;
        }
        match lines.last_mut() {
            _ if rest.is_empty() => drop(lines.pop()),
            Some(line) if line.is_empty() => line.push_str(rest),
            Some(line) => line.extend([" ", rest]),
            None => {}
        }
    }
    lines
}

/// Control characters, and those that reorder or hide what stands beside them.
fn hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Fills a column: cut with an ellipsis where the words are wider, padded where they are narrower.
pub(crate) fn fit(words: &str, width: usize) -> String {
    let mut fitted = cut(words, width);
    let used: usize = fitted.chars().map(|character| character.width().unwrap_or(0)).sum();
    fitted.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
    fitted
}

/// At most so many cells of a terminal.
pub(crate) fn cut(words: &str, width: usize) -> String {
    let cells = |character: char| character.width().unwrap_or(0);
    if words.chars().map(cells).sum::<usize>() <= width {
        return words.to_owned();
    }
    let mut taken = String::new();
    let mut used = 1;
    for character in words.chars() {
        used += cells(character);
        if used > width {
            break;
        }
        taken.push(character);
    }
    if width > 0 {
        taken.push('…');
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_between_words_or_within_long_ones() {
        assert_eq!(fold("one two three", 7), ["one two", "three"]);
        assert_eq!(fold("one two three", 8), ["one two", "three"]);
        assert_eq!(fold("", 8), [""]);
        assert_eq!(fold("a abcdefghij b", 4), ["a", "abcd", "efgh", "ij b"]);
        assert_eq!(fold("容器容器", 5), ["容器", "容器"]);
        assert_eq!(fold("容", 0), ["容"]);
    }
    use serde_json::json;

    #[test]
    fn ends_are_told_in_words() {
        for (exit, words) in [
            (json!({"code": 0, "signal": null, "oom_killed": null}), "exit 0"),
            (json!({"code": 137, "signal": null, "oom_killed": false}), "exit 137"),
            (json!({"code": null, "signal": 9, "oom_killed": true}), "SIGKILL, out of memory"),
            (json!({"code": 137, "signal": null, "oom_killed": true}), "exit 137, out of memory"),
            (json!({"code": null, "signal": 15, "oom_killed": null}), "SIGTERM"),
            (json!({"code": null, "signal": 6, "core_dumped": true}), "SIGABRT, core dumped"),
            (json!({"code": null, "signal": 31, "oom_killed": null}), "SIGSYS"),
            (json!({"code": null, "signal": 34, "oom_killed": null}), "signal 34"),
            (json!({"code": null, "signal": 0, "oom_killed": null}), "signal 0"),
            (json!({"code": null, "signal": null, "oom_killed": null}), "how is not known"),
            (Value::Null, "how is not known"),
        ] {
            assert_eq!(exit_words(&exit), words, "{exit}");
        }
    }

    #[test]
    fn what_was_asked_for_is_told_in_words() {
        let words = |event: Value| Row::new(&event, false).what;
        assert_eq!(words(json!({"event": "killed", "signal": 15})), "SIGTERM was asked for");
        assert_eq!(words(json!({"event": "updated", "limits": {"memory": "64M"}})), r#"{"memory":"64M"}"#);
        let failed = json!({"event": "failed", "verb": "killed", "signal": 9, "exit": {"code": 1}});
        assert_eq!(words(failed), "not killed: exit 1; SIGKILL was asked for");
    }

    #[test]
    fn times_have_the_digits_that_matter() {
        for (micros, words) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (3_240, "3.2 ms"),
            (85_500, "85 ms"),
            (3_010_000, "3.0 s"),
            (9_999_999, "9.9 s"),
            (59_900_000, "59 s"),
            (184_000_000, "3m 04s"),
            (7_500_000_000, "2h 05m"),
            (1_047_600_000_000, "12d 03h"),
        ] {
            assert_eq!(time_words(Duration::from_micros(micros)), words);
        }
    }

    #[test]
    fn what_a_container_is_called_cannot_draw_on_the_terminal() {
        assert_eq!(clean("\x1b[2Jweb"), "\\u{1b}[2Jweb");
        assert_eq!(clean("a\nb\tc\r"), "a\\nb\\tc\\u{d}");
        assert_eq!(clean("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(clean("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(clean("läuft 容器"), "läuft 容器");
        assert_eq!(clean(&"x".repeat(5000)).chars().count(), 1025);
    }

    #[test]
    fn only_ids_that_engines_make_are_cut() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(short_id(&id), "0123456789ab");
        assert_eq!(short_id("a-name-of-sixty-four"), "a-name-of-sixty-four");
        assert_eq!(short_id(&"z".repeat(64)).len(), 64);
        // 64 bytes, but not 64 characters: no panic in the middle of one.
        assert_eq!(short_id(&"ü".repeat(32)).len(), 64);
    }

    #[test]
    fn words_fit_their_column_by_cells_not_by_bytes() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(fit("容器容器", 5), "容器…");
        assert_eq!(fit("容器容器", 4), "容… ");
        assert_eq!(fit("abc", 0), "");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 1), "…");
    }

    #[test]
    fn an_answer_is_told_with_how_long_it_took_and_why() {
        let event = |answer: Value| {
            Row::new(
                &json!({"event": "pre-create", "id": "c1", "held": true, "answer": answer, "rootless": false}),
                false,
            )
        };
        let row =
            event(json!({"decision": "allow", "reason": null, "timed_out": false, "held_us": 3_012_345}));
        assert_eq!((row.what.as_str(), row.alarming), ("allowed after 3.0 s", false));
        let row =
            event(json!({"decision": "deny", "reason": "bad\nname", "timed_out": false, "held_us": 120}));
        assert_eq!((row.what.as_str(), row.alarming), ("denied after 120 µs: bad\\nname", true));
        let row =
            event(json!({"decision": "allow", "reason": null, "timed_out": true, "held_us": 10_000_400}));
        assert_eq!((row.what.as_str(), row.alarming), ("allowed (no answer in time) after 10 s", true));
    }

    #[test]
    fn names_come_from_kubernetes_where_the_engine_gave_none() {
        let pod = json!({"namespace": "shop", "pod": "web-1", "pod_uid": "u", "container": "nginx", "sandbox": false});
        assert_eq!(name(&json!({"name": null, "kubernetes": pod})), "web-1/nginx");
        assert_eq!(name(&json!({"name": "web", "kubernetes": pod})), "web");
        assert_eq!(name(&json!({"name": null, "kubernetes": {"pod": "web-1", "container": null}})), "web-1");
        assert_eq!(name(&json!({"name": null, "kubernetes": null})), "");
    }

    #[test]
    fn nothing_in_an_event_makes_a_row_panic() {
        for event in
            [json!(null), json!([]), json!({}), json!({"event": 3, "id": {}, "exit": [1], "answer": {}})]
        {
            let _ = Row::new(&event, false);
        }
    }
}
