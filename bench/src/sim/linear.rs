//! Whether what clients were told of one znode is what a single copy could have told them: a search for one order
//! of the operations that keeps to real time (Wing & Gong 1993, with Lowe's memory of what was tried).
//!
//! Linearizability is local: a history is linearizable if its part for each znode is. Operations whose outcome no
//! client learnt may take effect at any time after they were asked for, or never.

use std::collections::HashSet;
use std::fmt;

/// After so many steps the search gives up; histories of simulations take a few thousand.
const STEPS_MAX: usize = 2_000_000;

/// An operation on a znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ask {
    /// Writes a value.
    Write(u64),
    /// Writes a value if the znode has this version.
    Compare {
        version: i32,
        value: u64,
    },
    /// Creates the znode.
    Create(u64),
    Delete,
    Read,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    /// It took effect.
    Done,
    /// It took effect, and the znode has this version.
    Version(i32),
    /// The value and version.
    Found(u64, i32),
    NoNode,
    NodeExists,
    BadVersion,
}

/// The znode: its value and version, if it exists.
pub(super) type Register = Option<(u64, i32)>;

/// An operation with the moments at which it was asked for and answered. Moments are numbers of a total order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) asked: u64,
    /// With what was told; nothing is known of the outcome of operations without.
    pub(super) answered: Option<(u64, Told)>,
    pub(super) ask: Ask,
}

/// What came of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    /// No order explains what was told; with the operations around the place where every try ended.
    Impossible(Vec<Operation>),
    /// The search took too long.
    Undecided,
}

/// What an operation does to the znode, and what it tells.
pub(super) fn perform(register: Register, ask: Ask) -> (Register, Told) {
    match (ask, register) {
        (Ask::Create(value), None) => (Some((value, 0)), Told::Done),
        (Ask::Create(_), Some(_)) => (register, Told::NodeExists),
        (_, None) => (None, Told::NoNode),
        (Ask::Read, Some((value, version))) => (register, Told::Found(value, version)),
        (Ask::Delete, Some(_)) => (None, Told::Done),
        (Ask::Write(value), Some((_, version))) => (Some((value, version + 1)), Told::Version(version + 1)),
        (Ask::Compare { version: expected, value }, Some((_, version))) => {
            if expected == version {
                (Some((value, version + 1)), Told::Version(version + 1))
            } else {
                (register, Told::BadVersion)
            }
        }
    }
}

/// Searches for an order of the operations, from a znode that does not exist.
pub(super) fn check(operations: &[Operation]) -> Verdict {
    let mut operations: Vec<Operation> =
        operations.iter().copied().filter(|o| o.ask != Ask::Read || o.answered.is_some()).collect();
    operations.sort_by_key(|operation| operation.asked);
    Search::new(operations).run()
}

struct Search {
    operations: Vec<Operation>,
    /// Which of them have taken effect.
    done: Vec<bool>,
    /// Those answered that have not.
    missing: usize,
    register: Register,
    tried: HashSet<(Vec<u32>, Register)>,
    levels: Vec<Level>,
    /// The most operations that any try explained, and where it ended.
    deepest: (usize, u64),
}

/// A moment of the search: what may take effect next, and the register before.
struct Level {
    choices: Vec<usize>,
    taken: Option<usize>,
    before: Register,
}

impl Search {
    fn new(operations: Vec<Operation>) -> Self {
        let missing = operations.iter().filter(|o| o.answered.is_some()).count();
        let done = vec![false; operations.len()];
        Self {
            operations,
            done,
            missing,
            register: None,
            tried: HashSet::new(),
            levels: Vec::new(),
            deepest: (0, 0),
        }
    }

    fn run(mut self) -> Verdict {
        self.descend();
        for _ in 0..STEPS_MAX {
            if self.missing == 0 {
                return Verdict::Linearizable;
            }
            if !self.step() {
                return self.impossible();
            }
        }
        Verdict::Undecided
    }

    /// Tries the next choice; `false` if there is none left anywhere.
    fn step(&mut self) -> bool {
        let Some(level) = self.levels.last_mut() else { return false };
        if let Some(taken) = level.taken.take() {
            self.register = level.before;
            self.done[taken] = false;
            self.missing += usize::from(self.operations[taken].answered.is_some());
        }
        let Some(choice) = level.choices.pop() else {
            self.levels.pop();
            return true;
        };
        let operation = self.operations[choice];
        let (after, tells) = perform(self.register, operation.ask);
        if operation.answered.is_some_and(|(_, told)| told != tells) {
            return true;
        }
        level.taken = Some(choice);
        self.register = after;
        self.done[choice] = true;
        self.missing -= usize::from(operation.answered.is_some());
        if self.tried.insert(self.place()) {
            self.descend();
        } else {
            // Another order led here before, in vain.
            self.levels.push(Level { choices: Vec::new(), taken: None, before: self.register });
        }
        true
    }

    /// What has taken effect, beyond the first operations that all have, and the register.
    fn place(&self) -> (Vec<u32>, Register) {
        let first = self.done.iter().position(|done| !done).unwrap_or(self.done.len());
        let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let beyond = (first..self.done.len()).filter(|index| self.done[*index]).map(number);
        (std::iter::once(number(first)).chain(beyond).collect(), self.register)
    }

    /// What may take effect next: what was asked for before anything that is missing was answered.
    fn descend(&mut self) {
        let mut first_answer = u64::MAX;
        let (mut answered, mut unknown) = (Vec::new(), Vec::new());
        for (index, operation) in self.operations.iter().enumerate() {
            if operation.asked > first_answer {
                break;
            }
            if self.done[index] {
                continue;
            }
            match operation.answered {
                Some((at, _)) => {
                    first_answer = first_answer.min(at);
                    answered.push((at, index));
                }
                None => unknown.push(index),
            }
        }
        answered.sort_unstable();
        // The last is tried first: answered operations in the order of their answers.
        let choices = unknown.into_iter().chain(answered.into_iter().rev().map(|(_, index)| index)).collect();
        self.deepest = self.deepest.max((self.operations.len() - self.missing, first_answer));
        self.levels.push(Level { choices, taken: None, before: self.register });
    }

    fn impossible(self) -> Verdict {
        let (_, at) = self.deepest;
        let near = self.operations.iter().filter(|o| o.asked <= at);
        let mut near: Vec<Operation> = near.copied().collect();
        near.drain(..near.len().saturating_sub(8));
        Verdict::Impossible(near)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.answered {
            Some((at, told)) => write!(f, "{:?} {}-{at}: {told:?}", self.ask, self.asked),
            None => write!(f, "{:?} {}-?", self.ask, self.asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use consistency_model::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
    use proptest::prelude::*;

    use super::*;

    fn operation(asked: u64, answered: u64, ask: Ask, told: Told) -> Operation {
        Operation { asked, answered: Some((answered, told)), ask }
    }

    #[test]
    fn a_stale_read_is_impossible() {
        let history = [
            operation(0, 1, Ask::Create(1), Told::Done),
            operation(2, 3, Ask::Write(2), Told::Version(1)),
            operation(4, 5, Ask::Read, Told::Found(1, 0)),
        ];
        assert!(matches!(check(&history), Verdict::Impossible(_)));
        assert_eq!(check(&history[..2]), Verdict::Linearizable);
    }

    #[test]
    fn an_operation_of_unknown_outcome_may_take_effect_late_or_never() {
        let unknown = Operation { asked: 2, answered: None, ask: Ask::Write(2) };
        let before = operation(0, 1, Ask::Create(1), Told::Done);
        let old = operation(3, 4, Ask::Read, Told::Found(1, 0));
        let new = operation(5, 6, Ask::Read, Told::Found(2, 1));
        assert_eq!(check(&[before, unknown, old]), Verdict::Linearizable);
        assert_eq!(check(&[before, unknown, old, new]), Verdict::Linearizable);
        let back = operation(7, 8, Ask::Read, Told::Found(1, 0));
        assert!(matches!(check(&[before, unknown, new, back]), Verdict::Impossible(_)));
    }

    /// The same register for the independent checker.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    struct Model(Register);

    impl SequentialSpec for Model {
        type Op = Ask;
        type Ret = Told;

        fn invoke(&mut self, ask: &Ask) -> Told {
            let (register, told) = perform(self.0, *ask);
            self.0 = register;
            told
        }
    }

    fn ask() -> impl Strategy<Value = Ask> {
        prop_oneof![
            (1u64..4).prop_map(Ask::Write),
            (0i32..3, 1u64..4).prop_map(|(version, value)| Ask::Compare { version, value }),
            (1u64..4).prop_map(Ask::Create),
            Just(Ask::Delete),
            Just(Ask::Read),
        ]
    }

    /// Events of three clients: each begins an operation or learns its outcome, which is what a single copy
    /// would tell at that moment, or something else now and then.
    fn history() -> impl Strategy<Value = Vec<(usize, Ask, u8)>> {
        proptest::collection::vec((0usize..3, ask(), 0u8..12), 0..14)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn an_independent_checker_says_the_same(events in history()) {
            let mut independent = LinearizabilityTester::new(Model::default());
            let (mut register, mut operations) = (None, Vec::<Operation>::new());
            let mut under_way: [Option<usize>; 3] = [None; 3];
            for (moment, (client, ask, luck)) in (0u64..).zip(events) {
                match under_way[client].take() {
                    None => {
                        independent.on_invoke(client, ask).unwrap();
                        under_way[client] = Some(operations.len());
                        operations.push(Operation { asked: moment, answered: None, ask });
                    }
                    Some(index) => {
                        let (after, told) = perform(register, operations[index].ask);
                        register = after;
                        let told = match luck {
                            0 => Told::NoNode,
                            1 => Told::Found(1, 0),
                            2 => Told::Version(1),
                            _ => told,
                        };
                        independent.on_return(client, told).unwrap();
                        operations[index].answered = Some((moment, told));
                    }
                }
            }
            let possible = check(&operations) == Verdict::Linearizable;
            prop_assert_eq!(possible, independent.is_consistent(), "{:?}", operations);
        }
    }
}
