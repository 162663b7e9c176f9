//! The seams to the outside world (time, randomness, network, disk), the record codec and the limits
pub mod disk;
