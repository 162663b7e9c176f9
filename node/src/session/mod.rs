//! What a server keeps for the clients connected to it: which watches fire for which change, and which
//! sessions have not been heard of for too long. Pure: no I/O, no clock.

mod expiry;
mod watches;

pub use expiry::Expiry;
pub use watches::{Recent, Watch, WatchTable};
