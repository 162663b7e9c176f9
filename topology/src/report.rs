//! What a plan says: to people as text, to programs as JSON.

mod configuration;
mod explanation;
mod html;
mod json;
mod running;
mod text;

pub use configuration::{File, configuration};
pub use explanation::explanation;
pub use html::html;
pub use json::{json, refusal_json};
pub use running::{Order, orders, running};
pub use text::{comparison, findings, text};
