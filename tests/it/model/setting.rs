//! What a sequence runs on, and what happened meanwhile.

use esker::Options;

/// What a sequence runs on.
#[derive(Clone, Debug)]
pub struct Setting {
    pub options: Options,
    /// The seed of a stepper; real threads without.
    pub stepper: Option<u64>,
    /// A database of one engine with 0.
    pub shards: usize,
}

/// What happened in the background of a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub flushes: u64,
    pub compactions: u64,
    pub opens: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.operations += other.operations;
        self.flushes += other.flushes;
        self.compactions += other.compactions;
        self.opens += other.opens;
    }
}

/// What went wrong, for people.
#[derive(Debug)]
pub struct Failure(pub String);

impl From<esker::Error> for Failure {
    fn from(error: esker::Error) -> Failure {
        Failure(format!("unexpected error: {error}"))
    }
}
