//! What a plan says: to people as text, to programs as JSON.

mod json;
mod text;

pub use json::{json, refusal_json};
pub use text::{comparison, findings, text};
