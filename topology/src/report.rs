//! What a plan says: to people as text, to programs as JSON.

mod configuration;
mod explanation;
mod json;
mod text;

pub use configuration::{File, configuration};
pub use explanation::explanation;
pub use json::{json, refusal_json};
pub use text::{comparison, findings, text};
