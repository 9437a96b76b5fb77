//! `--filter FIELD=PATTERN`: which events are shown.

use std::str::FromStr;

use serde_json::Value;

use crate::field::Field;

/// One condition. Several of one field are alternatives; conditions of different fields must all hold.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    field: Field,
    not: bool,
    pattern: String,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let (field, pattern) =
            words.split_once('=').ok_or("give FIELD=PATTERN or FIELD!=PATTERN, such as name=web-*")?;
        let (field, not) = field.strip_suffix('!').map_or((field, false), |field| (field, true));
        let field: Field = field.trim().parse().map_err(|error| format!("{error}"))?;
        if field.needs_config() {
            return Err("config cannot be filtered by: it is not part of an event by itself".into());
        }
        Ok(Condition { field, not, pattern: pattern.to_owned() })
    }
}

impl Condition {
    fn matches(&self, event: &Value) -> bool {
        let text = self.field.text(event).unwrap_or_default();
        // Engines print the first 12 digits of an id, and that is what people have at hand.
        let short = self.field.is_id()
            && self.pattern.len() >= 12
            && text.len() == 64
            && text.starts_with(&self.pattern);
        short || glob(&self.pattern, &text)
    }
}

/// Is the event one of those asked for?
pub(crate) fn wanted(conditions: &[Condition], event: &Value) -> bool {
    // What was lost may have been any container's.
    if matches!(event["event"].as_str(), Some("overflow" | "lost")) {
        return true;
    }
    conditions.iter().all(|condition| {
        if condition.not {
            return !condition.matches(event);
        }
        conditions.iter().any(|other| !other.not && other.field == condition.field && other.matches(event))
    })
}

/// `*` is any run of characters, `?` any one. It takes time in proportion to both lengths' product at most.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') => {
                p += 1;
                t += 1;
            }
            Some(character) if *character == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    p = *at + 1;
                    t = *taken;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|character| *character == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("web-*", "web-1", true),
            ("web-*", "my-web-1", false),
            ("*web*", "my-web-1", true),
            ("w?b", "wäb", true),
            ("w?b", "wb", false),
            ("*a*b", "aXbXb", true),
            ("*a*b", "aXbX", false),
            ("a[b", "a[b", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern:?} {text:?}");
        }
        // Not exponential.
        assert!(!glob(&"*a".repeat(30), &"b".repeat(10_000)));
    }

    #[test]
    fn conditions_of_one_field_are_alternatives_and_fields_add_up() {
        let id = "0123456789abcdef".repeat(4);
        let event = json!({
            "event": "created", "id": id, "name": "web-1", "engine": "docker", "kubernetes": {"namespace": "shop"}
        });
        for (conditions, expected) in [
            (&[][..], true),
            (&["name=web-*"], true),
            (&["name=db-*"], false),
            (&["name=db-*", "name=web-*"], true),
            (&["name=web-*", "engine=podman"], false),
            (&["name=web-*", "engine=docker", "namespace=shop"], true),
            (&["name!=web-*"], false),
            (&["name!=db-*", "name!=cache-*"], true),
            (&["id=0123456789ab"], true),
            (&["id=0123"], false),
            (&["id=0123*"], true),
            (&["image="], true),
        ] {
            let conditions: Vec<Condition> = conditions.iter().map(|words| words.parse().unwrap()).collect();
            assert_eq!(wanted(&conditions, &event), expected, "{conditions:?}");
        }
        let condition = ["name=x".parse().unwrap()];
        assert!(wanted(&condition, &json!({"event": "lost", "id": "y"})));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for words in ["name", "nam=x", "=x", "config.hostname=x"] {
            assert!(words.parse::<Condition>().is_err(), "{words}");
        }
    }
}
