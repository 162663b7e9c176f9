//! What a layout costs: servers, and what writes send between regions.

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Days of a month, on average over the years.
const DAYS_PER_MONTH: f64 = 365.25 / 12.0;

/// Bytes that a write takes on the wire beside its data: headers of the log entry, of QUIC and IP.
const WRITE_OVERHEAD_BYTES: f64 = 150.0;

/// Prices, in any currency; nothing costs anything unless it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// A voter, per month.
    pub voter: f64,
    /// An observer, per month; as much as a voter where nothing is said.
    pub observer: Option<f64>,
    /// One copy of one write between regions.
    pub wan_copy: f64,
    /// A gigabyte sent between regions.
    pub wan_gb: f64,
}

/// How much is written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// Writes of all clients, per second.
    pub writes_per_s: f64,
    /// Data of a write, bytes.
    pub write_bytes: f64,
}

impl Default for Traffic {
    /// A hundred writes of 350 bytes a second: 500 bytes each on the wire.
    fn default() -> Self {
        Traffic { writes_per_s: 100.0, write_bytes: 350.0 }
    }
}

impl Traffic {
    /// What the copies of a layout's writes send between regions, kB/s.
    pub fn wan_kb_per_s(&self, layout: &Layout) -> f64 {
        self.copies_per_s(layout) * (self.write_bytes + WRITE_OVERHEAD_BYTES) / 1000.0
    }

    fn copies_per_s(&self, layout: &Layout) -> f64 {
        self.writes_per_s * layout.wan_copies_per_write() as f64
    }
}

impl Prices {
    /// Whether anything costs anything.
    pub fn are_given(&self) -> bool {
        [self.voter, self.observer.unwrap_or(0.0), self.wan_copy, self.wan_gb]
            .iter()
            .any(|price| *price > 0.0)
    }

    /// Servers, copies and gigabytes of a month.
    pub fn cost_per_month(&self, layout: &Layout, traffic: &Traffic) -> f64 {
        let observers: f64 = layout.observers.iter().map(|count| f64::from(*count)).sum();
        let servers =
            self.voter * layout.voter_count() as f64 + self.observer.unwrap_or(self.voter) * observers;
        let seconds = DAYS_PER_MONTH * 86_400.0;
        let copies = self.wan_copy * traffic.copies_per_s(layout) * seconds;
        let gigabytes = self.wan_gb * traffic.wan_kb_per_s(layout) * seconds / 1e6;
        servers + copies + gigabytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::tests::layout;
    use crate::layout::Design;

    #[test]
    fn a_month_costs_its_servers_copies_and_gigabytes() {
        let mut flat = layout(Design::Flat, 0, [2, 2, 1]);
        flat.observers = vec![0, 1, 0];
        let traffic = Traffic { writes_per_s: 10.0, write_bytes: 850.0 };
        let cost = |prices: Prices| prices.cost_per_month(&flat, &traffic);
        assert_eq!(cost(Prices { voter: 100.0, ..Prices::default() }), 600.0);
        assert_eq!(cost(Prices { voter: 100.0, observer: Some(50.0), ..Prices::default() }), 550.0);
        let copies = 40.0 * 86_400.0 * DAYS_PER_MONTH;
        assert!((cost(Prices { wan_copy: 1e-6, ..Prices::default() }) - copies * 1e-6).abs() < 1e-9);
        assert!((cost(Prices { wan_gb: 0.02, ..Prices::default() }) - copies * 1e-6 * 0.02).abs() < 1e-9);
        assert_eq!(traffic.wan_kb_per_s(&flat), 40.0);
        assert!(!Prices::default().are_given());
    }
}
