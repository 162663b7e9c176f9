//! Real clients on real servers: sockets on loopback, logs in temporary directories.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod raw;
mod region;

mod authentication;
mod backup;
mod disk;
mod edge_cases;
mod hostile;
#[cfg(feature = "kerberos")]
mod kerberos;
mod limits;
mod local_sessions;
mod members;
mod protocol;
mod read_only;
mod sessions;
mod shared;
mod tls;
mod watches;
mod znodes;
mod zookeeper;
