//! Real clients on real servers: sockets on loopback, logs in temporary directories.

mod raw;
mod region;

mod protocol;
mod sessions;
mod watches;
mod zookeeper;
