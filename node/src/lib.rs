//! The Meridian region server and the meridian command
pub mod log;
pub mod snapshot;
