//! Load generator, side-by-side comparison and latency reports
