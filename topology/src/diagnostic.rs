//! Findings about the input, as values: what a compiler would print about a program, said about a
//! scenario and its round-trip times.

use std::fmt;

use serde::{Serialize, Serializer};

/// One finding: how bad, which rule, where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostic {
    /// Errors refuse the input; warnings and notes accompany a plan.
    pub level: Level,
    /// The rule that speaks.
    pub code: Code,
    /// The place in the input: a key, a pair of regions or a line.
    pub place: String,
    /// What is the matter, with the figures.
    pub message: String,
    /// What to do, if there is something to propose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// Where that is in the file, if it comes from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Box<At>>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct At {
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// The line's text.
    #[serde(skip)]
    pub text: String,
    /// Characters to underline.
    #[serde(skip)]
    pub width: usize,
}

impl Diagnostic {
    /// A finding of the level that its code carries.
    pub fn new(code: Code, place: impl Into<String>, message: impl Into<String>) -> Self {
        Diagnostic {
            level: code.level(),
            code,
            place: place.into(),
            message: message.into(),
            suggestion: None,
            at: None,
        }
    }

    /// The same finding with a proposal.
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}: {}", self.level, self.code.name(), self.place, self.message)?;
        if let Some(at) = &self.at {
            let number = at.line.to_string();
            let margin = " ".repeat(number.len());
            let (text, before) = at.excerpt();
            let mark = "^".repeat(at.width.min(text.chars().count().saturating_sub(before)).max(1));
            write!(f, "\n{margin}--> {}:{}:{}", at.file, at.line, at.column)?;
            write!(f, "\n{margin} |\n{number} | {text}")?;
            write!(f, "\n{margin} | {}{mark}", " ".repeat(before))?;
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, "\n  help: {suggestion}"),
            None => Ok(()),
        }
    }
}

/// Characters of a line that are shown, and how many of them before the mark.
const EXCERPT_CHARS: usize = 110;
const EXCERPT_LEAD_CHARS: usize = 30;

/// Stands where a line is cut.
const CUT: &str = "...";

impl At {
    /// The part of the line around the place, tabs as spaces, and the place in it, from 0.
    fn excerpt(&self) -> (String, usize) {
        let before = self.column.saturating_sub(1);
        let length = self.text.chars().count();
        let skipped = if length > EXCERPT_CHARS { before.saturating_sub(EXCERPT_LEAD_CHARS) } else { 0 };
        let shown = self.text.chars().skip(skipped).take(EXCERPT_CHARS);
        let shown: String = shown.map(|c| if c == '\t' { ' ' } else { c }).collect();
        let (head, tail) =
            (if skipped > 0 { CUT } else { "" }, if length > skipped + EXCERPT_CHARS { CUT } else { "" });
        (format!("{head}{shown}{tail}"), before - skipped + head.len())
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// An assumption the reader should know of.
    Note,
    /// The plan stands, but on a doubtful figure.
    Warning,
    /// No plan can be made from this input.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        })
    }
}

macro_rules! codes {
    ($($variant:ident, $name:literal, $level:ident, $doc:literal;)+) => {
        /// The rules; each has a stable name for scripts to match on and one level.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $doc] $variant,)+ }

        impl Code {
            /// The stable name, as printed and as written to JSON.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)+ }
            }

            /// The level of every finding of this rule.
            pub fn level(self) -> Level {
                match self { $(Code::$variant => Level::$level,)+ }
            }
        }
    };
}

codes! {
    Syntax, "syntax", Error, "The text is not what its form asks for.";
    TooLarge, "too-large", Error, "More regions, rows or voters than the planner takes.";
    UnknownKey, "unknown-key", Error, "A key that no scenario has.";
    BadValue, "bad-value", Error, "A value outside its range.";
    UnknownRegion, "unknown-region", Error, "A region that is not in the list or in the matrix.";
    NoRegions, "no-regions", Error, "No regions were named.";
    DuplicateRegion, "duplicate-region", Error, "A region is named twice.";
    MissingPair, "missing-pair", Error, "No round-trip time for a pair, in either direction.";
    BadLatency, "bad-latency", Error, "A time that is zero, negative or not a number.";
    TailBelowMedian, "tail-below-median", Error, "A p99 below its p50.";
    FasterThanLight, "faster-than-light", Error, "A round trip shorter than light in vacuum needs.";
    FasterThanFibre, "faster-than-fibre", Warning, "A round trip shorter than light in fibre needs.";
    Asymmetric, "asymmetric-pair", Warning, "The two directions differ by more than 15 %.";
    Triangle, "triangle-violation", Warning, "A detour over a third region is more than 5 % shorter.";
    Conflict, "conflicting-pair", Warning, "One pair and direction is given twice.";
    BadHistogram, "bad-histogram", Warning, "A histogram that can't be read or contradicts its percentiles.";
    FewSamples, "few-samples", Warning, "Too few samples for the tail that is asked of them.";
    TwoGroups, "two-groups", Warning, "Two groups: the loss of either stops writes.";
    ZeroWeight, "zero-weight", Warning, "Servers of weight zero: their region has no vote.";
    EvenVoters, "even-voters", Warning, "An even number of voters, which buys nothing.";
    WitnessLeader, "witness-leader", Warning, "A witness is to lead.";
    SessionCap, "session-cap", Warning, "A default caps sessions below what is wanted.";
    Unfit, "unfit", Warning, "A timeout in use does not fit the round trips.";
    ShareSum, "share-sum", Warning, "The clients' write shares do not sum to one.";
    Ignored, "ignored", Warning, "A setting that has no effect.";
    AssumedTail, "assumed-tail", Note, "Only the median is known; the tail is assumed.";
    Assumed, "assumed", Note, "A default that decides something was used.";
    SlowPreference, "slow-preference", Note, "The preferred leader region is not the fastest.";
    Bounded, "bounded-search", Warning, "Too many layouts to look at them all.";
    Infeasible, "infeasible", Warning, "No layout meets the requirements.";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Whether any finding refuses the input.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|finding| finding.level == Level::Error)
}

/// The known name nearest to a misspelt one, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (likeness(&name, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate)
}

/// A name that only lacks its end, or has one too many, is most likely meant.
fn likeness(a: &str, b: &str) -> f64 {
    let jaro_winkler = strsim::jaro_winkler(a, b);
    let extends = !a.is_empty() && !b.is_empty() && (a.starts_with(b) || b.starts_with(a));
    if extends { jaro_winkler.max(0.95) } else { jaro_winkler }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_meant() {
        let known = ["us-east-1", "us-west-2", "eu-west-1"];
        assert_eq!(nearest("us-esat-1", known), Some("us-east-1"));
        assert_eq!(nearest("EU-WEST1", known), Some("eu-west-1"));
        assert_eq!(nearest("us-east", known), Some("us-east-1"));
        assert_eq!(nearest("zzz", known), None);
    }

    #[test]
    fn a_finding_reads_like_a_compiler_message() {
        let finding =
            Diagnostic::new(Code::MissingPair, "rtt a-b", "no round-trip time").suggest("measure it");
        assert_eq!(
            finding.to_string(),
            "error[missing-pair]: rtt a-b: no round-trip time\n  help: measure it"
        );
    }
}
