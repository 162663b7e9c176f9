//! The bridge between regions: QUIC transport, the global group, leases, homes and mirrors
