//! What the links between regions are like.

use std::collections::BTreeMap;
use std::time::Duration;

/// The longest one-way delay and the largest jitter that a link can have.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// The regions and the links between them.
///
/// A link that is not set has no delay and loses nothing; so has a region's link to itself.
#[derive(Debug, Clone)]
pub struct WanDelays {
    regions: Vec<String>,
    conditions: BTreeMap<(usize, usize), Conditions>,
}

/// What one direction of a link does to datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Conditions {
    /// The least time under way.
    pub one_way: Duration,
    /// The most time on top of it, drawn evenly for each datagram.
    pub jitter: Duration,
    /// The share of datagrams that get lost, 0 to 1.
    pub loss: f64,
}

impl WanDelays {
    /// Regions without any delay between them yet. A name is one word.
    pub fn new<N: Into<String>>(regions: impl IntoIterator<Item = N>) -> Result<Self, WanError> {
        let regions: Vec<String> = regions.into_iter().map(Into::into).collect();
        for (at, name) in regions.iter().enumerate() {
            let is_word = !name.is_empty() && !name.contains(char::is_whitespace);
            if !is_word || regions.iter().take(at).any(|earlier| earlier == name) {
                return Err(WanError::RegionName(name.clone()));
            }
        }
        Ok(Self { regions, conditions: BTreeMap::new() })
    }

    /// Sets the delay of both directions to half the round-trip time.
    pub fn round_trip(self, a: &str, b: &str, round_trip: Duration) -> Result<Self, WanError> {
        let conditions = Conditions { one_way: round_trip / 2, ..Conditions::default() };
        self.direction(a, b, conditions)?.direction(b, a, conditions)
    }

    /// Sets what one direction is like.
    pub fn direction(mut self, from: &str, to: &str, conditions: Conditions) -> Result<Self, WanError> {
        let Conditions { one_way, jitter, loss } = conditions;
        if one_way > DELAY_MAX || jitter > DELAY_MAX || !(0.0..=1.0).contains(&loss) {
            return Err(WanError::Conditions(conditions));
        }
        let direction = (self.region(from)?, self.region(to)?);
        self.conditions.insert(direction, conditions);
        Ok(self)
    }

    pub(crate) fn regions(&self) -> &[String] {
        &self.regions
    }

    /// The index of a region.
    pub(crate) fn region(&self, name: &str) -> Result<usize, WanError> {
        self.regions
            .iter()
            .position(|region| region == name)
            .ok_or_else(|| WanError::UnknownRegion { name: name.to_owned(), known: self.regions.join(", ") })
    }

    pub(crate) fn conditions(&self, from: usize, to: usize) -> Conditions {
        self.conditions.get(&(from, to)).copied().unwrap_or_default()
    }
}

/// Why the network can't be made or changed so.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// A region that is not part of the network.
    #[error("unknown region {name:?}; the regions are: {known}")]
    UnknownRegion {
        /// The name asked for.
        name: String,
        /// All names, for the reader.
        known: String,
    },
    /// An empty name, one with white space, or one given twice.
    #[error("{0:?} can't name a region: names are single words, each used once")]
    RegionName(String),
    /// A region's link to itself can't be cut.
    #[error("{0:?} is one region: a link to cut or heal has two")]
    SameRegion(String),
    /// A delay above [`DELAY_MAX`], or a loss that is no share.
    #[error("a link can't be like this: {0:?} (delays up to {DELAY_MAX:?}, loss 0 to 1)")]
    Conditions(Conditions),
    /// A socket could not be opened.
    #[error("socket of a relay: {0}")]
    Socket(#[from] std::io::Error),
}
