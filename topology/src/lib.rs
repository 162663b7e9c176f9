//! The topology planner
