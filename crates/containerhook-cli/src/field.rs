//! The fields of an event by name, as `--filter` and `--format` know them.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::row::{Row, exit_words};

/// The fields of the JSON contract, and `what`: the last column of the table.
const NAMES: [&str; 29] = [
    "event",
    "seq",
    "time",
    "id",
    "name",
    "pid",
    "bundle",
    "runtime",
    "engine",
    "held",
    "existing",
    "answer",
    "rootless",
    "owner_uid",
    "image",
    "kubernetes",
    "exec",
    "exit",
    "verb",
    "signal",
    "limits",
    "started_at",
    "finished_at",
    "resources",
    "detail",
    "config_error",
    "cgroup",
    "config",
    "what",
];

/// Short names for what is asked for often.
const SHORT: [(&str, &[&str]); 3] = [
    ("namespace", &["kubernetes", "namespace"]),
    ("pod", &["kubernetes", "pod"]),
    ("container", &["kubernetes", "container"]),
];

/// A field by its path, such as `id`, `runtime.path` or `namespace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field(Vec<String>);

/// There is no such field.
#[derive(Debug)]
pub(crate) struct NoField(String);

impl fmt::Display for NoField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no field {:?}; the fields are {}", self.0, NAMES.join(", "))?;
        for (name, _) in SHORT {
            write!(f, ", {name}")?;
        }
        f.write_str(", and what is in them, such as runtime.path")
    }
}

impl std::error::Error for NoField {}

impl FromStr for Field {
    type Err = NoField;

    fn from_str(path: &str) -> Result<Self, NoField> {
        if let Some((_, long)) = SHORT.iter().find(|(name, _)| *name == path) {
            return Ok(Field(long.iter().map(|part| (*part).to_owned()).collect()));
        }
        let parts: Vec<String> = path.split('.').map(str::to_owned).collect();
        if !NAMES.contains(&parts[0].as_str()) || parts.iter().any(String::is_empty) {
            return Err(NoField(path.to_owned()));
        }
        Ok(Field(parts))
    }
}

impl Field {
    pub(crate) fn is_id(&self) -> bool {
        self.0 == ["id"]
    }

    /// The configuration is no part of an event unless it is asked for.
    pub(crate) fn needs_config(&self) -> bool {
        self.0[0] == "config"
    }

    /// The field's words; `None` where it is null. They are as they came: nobody has cleaned them.
    pub(crate) fn text(&self, event: &Value) -> Option<String> {
        let mut value = event;
        for part in &self.0 {
            // Arrays are asked by number: exec.args.0
            value = match (value, part.parse::<usize>()) {
                (Value::Array(items), Ok(index)) => items.get(index)?,
                _ => value.get(part).unwrap_or(&Value::Null),
            };
        }
        if self.0 == ["what"] {
            return Some(Row::new(event, false).what).filter(|what| !what.is_empty());
        }
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Object(_) if self.0.len() == 1 => Some(self.object(value)),
            other => Some(other.to_string()),
        }
    }

    /// What a person means by the name of something that has parts.
    fn object(&self, value: &Value) -> String {
        let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        match self.0[0].as_str() {
            "runtime" => word("name"),
            "answer" => word("decision"),
            "exit" => exit_words(value),
            "kubernetes" => {
                let parts = ["namespace", "pod", "container"].map(word);
                parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
            }
            "exec" => {
                let args = value["args"].as_array().map(Vec::as_slice).unwrap_or_default();
                args.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
            }
            _ => value.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_found_by_path_and_by_short_name() {
        let event = json!({
            "event": "stopped", "pid": 7, "name": null, "runtime": {"name": "runc", "path": "/r"},
            "kubernetes": {"namespace": "shop", "pod": "web-1", "container": null},
            "exec": {"args": ["sh", "-c"], "tty": true}, "exit": {"code": 3, "signal": null, "oom_killed": null},
            "answer": {"decision": "deny"}
        });
        for (path, text) in [
            ("event", Some("stopped")),
            ("pid", Some("7")),
            ("name", None),
            ("image", None),
            ("runtime", Some("runc")),
            ("runtime.path", Some("/r")),
            ("runtime.path.x", None),
            ("kubernetes", Some("shop/web-1")),
            ("namespace", Some("shop")),
            ("pod", Some("web-1")),
            ("container", None),
            ("exec", Some("sh -c")),
            ("exec.args.1", Some("-c")),
            ("exec.args.9", None),
            ("exec.tty", Some("true")),
            ("exit", Some("exit 3")),
            ("exit.code", Some("3")),
            ("answer", Some("deny")),
            ("what", Some("exit 3; denied")),
        ] {
            assert_eq!(path.parse::<Field>().unwrap().text(&event).as_deref(), text, "{path}");
        }
    }

    #[test]
    fn every_field_of_the_contract_can_be_asked_for() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/events.md");
        let page = std::fs::read_to_string(page).unwrap();
        // The tables whose first column is called "field".
        let mut of_fields = false;
        let mut fields = Vec::new();
        for line in page.lines() {
            match line.strip_prefix("| ").and_then(|line| line.split_once(" |")) {
                None => of_fields = false,
                Some(("field", _)) => of_fields = true,
                Some((cell, _)) if of_fields => fields.extend(cell.split('`').skip(1).step_by(2)),
                Some(_) => {}
            }
        }
        assert!(fields.contains(&"event") && fields.contains(&"resources"), "{fields:?}");
        for field in fields {
            assert!(field.parse::<Field>().is_ok(), "{field}");
        }
        let event = json!({"signal": 15, "resources": {"cpu_usec": 7, "memory_peak": null}});
        let text = |path: &str| path.parse::<Field>().unwrap().text(&event);
        assert_eq!(text("signal").as_deref(), Some("15"));
        assert_eq!(text("resources.cpu_usec").as_deref(), Some("7"));
        assert_eq!(text("resources.memory_peak"), None);
    }

    #[test]
    fn what_is_no_field_is_told_with_those_that_are() {
        for path in ["", "idd", ".id", "id.", "runtime..path"] {
            let error = path.parse::<Field>().unwrap_err().to_string();
            assert!(error.contains("the fields are event, seq, time, id, name"), "{error}");
        }
    }
}
