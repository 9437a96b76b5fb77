//! `--format TEMPLATE`: a line of one's own for each event.

use std::str::FromStr;

use serde_json::Value;

use crate::field::Field;
use crate::row::clean;

/// Words with fields between them: `{time} {event} {id} {exit}`.
#[derive(Clone, Debug)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Words(String),
    Field(Field),
}

impl FromStr for Template {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut characters = words.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '{' | '}' if characters.peek() == Some(&character) => {
                    characters.next();
                    text.push(character);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match characters.next() {
                            Some('}') => break,
                            Some(character) => name.push(character),
                            None => return Err(format!("{{{name} is not closed; write {{{{ for a brace")),
                        }
                    }
                    let field: Field = name.trim().parse().map_err(|error| format!("{error}"))?;
                    parts.push(Part::Words(std::mem::take(&mut text)));
                    parts.push(Part::Field(field));
                }
                '}' => return Err("a } that closes nothing; write }} for a brace".into()),
                '\\' => match characters.next() {
                    Some('t') => text.push('\t'),
                    Some('n') => text.push('\n'),
                    Some(other) => text.extend(['\\', other]),
                    None => text.push('\\'),
                },
                other => text.push(other),
            }
        }
        parts.push(Part::Words(text));
        Ok(Template(parts))
    }
}

impl Template {
    pub(crate) fn needs_config(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Field(field) if field.needs_config()))
    }

    /// The event's line. A field that is null is a dash.
    pub(crate) fn fill(&self, event: &Value) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Words(words) => words.clone(),
                Part::Field(field) => field.text(event).map_or_else(|| "-".to_owned(), |text| clean(&text)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_filled_in() {
        let event = json!({"event": "created", "id": "a\nb", "pid": 7, "name": null});
        for (template, line) in [
            ("", ""),
            ("{event}", "created"),
            ("{event} {id}\\t{pid}", "created a\\nb\t7"),
            ("{ name }{{}}", "-{}"),
            ("100% \\d", "100% \\d"),
        ] {
            assert_eq!(template.parse::<Template>().unwrap().fill(&event), line, "{template:?}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        for (template, reason) in
            [("{id", "is not closed"), ("id}", "closes nothing"), ("{idd}", "there is no field \"idd\"")]
        {
            let error = template.parse::<Template>().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
