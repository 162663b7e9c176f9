//! ZooKeeper's client protocol: jute records and frames
