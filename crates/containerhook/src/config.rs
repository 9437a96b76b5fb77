//! Placeholder for H6's.
/// A configuration.
#[derive(Clone, Debug)]
pub struct Config(std::sync::Arc<serde_json::Value>);
impl Config {
    /// The JSON.
    #[must_use]
    pub fn value(&self) -> Option<&serde_json::Value> {
        Some(&self.0)
    }
}
