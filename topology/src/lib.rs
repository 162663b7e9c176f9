//! The topology planner.
mod diagnostic;
pub mod layout;
pub mod latency;
pub mod matrix;
pub use diagnostic::*;
