//! The topology planner.
mod availability;
mod diagnostic;
pub mod layout;
pub mod latency;
pub mod matrix;
pub mod scenario;
pub mod survival;
pub mod timing;
pub use availability::*;
pub use diagnostic::*;
