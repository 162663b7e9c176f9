//! The topology planner of Meridian.
//!
//! From round-trip times between regions, and from where clients write, it says where voters,
//! observers and the leader should stand, what that costs in every region, what it survives, and
//! which timeouts follow. It does no I/O, reads no clock and draws no random number: callers hand
//! in texts and get values and texts back.
//!
//! ```
//! use meridian_topology::plan::{Objective, plan};
//! use meridian_topology::scenario;
//!
//! let scenario = scenario::parse(
//!     r#"
//!     regions = ["us-east", "us-west", "eu"]
//!     client_write_share = { us-east = 0.5, us-west = 0.25, eu = 0.25 }
//!     rtt.us-east = { us-west = { p50 = 62, p99 = 66 }, eu = { p50 = 75, p99 = 80 } }
//!     rtt.us-west = { eu = { p50 = 130, p99 = 138 } }
//!     "#,
//! )
//! .unwrap();
//! let plan = plan(&scenario, Objective::Mean).unwrap();
//! let best = plan.best().unwrap();
//! assert_eq!(plan.world.model.regions[best.layout.leader], "us-east");
//! assert_eq!(best.commit_ms, 63.0);
//! ```
//!
//! The parts, in the order of their use: [`matrix`] reads and checks round trips; [`scenario`]
//! reads what to plan for, [`live`]
//! what runs; [`layout`] enumerates layouts; [`latency`], [`survival`],
//! [`availability`], [`quorum`] and [`cost`] judge them; [`plan`] searches and ranks; [`timing`] derives timeouts;
//! [`report`] and [`command`] present it all.

pub mod availability;
pub mod command;
pub mod cost;
pub mod diagnostic;
pub mod latency;
pub mod layout;
pub mod live;
pub mod matrix;
pub mod plan;
pub mod quorum;
pub mod report;
pub mod scenario;
pub mod survival;
pub mod timing;
