//! Why a verb ended without success: one line for a person, or nothing where nobody reads.

use std::io;

use esker::{Error, ErrorKind};

/// The result of every verb.
pub type Result<T> = std::result::Result<T, Failure>;

/// See the module's comment.
#[derive(Debug)]
pub enum Failure {
    /// One line: what failed, and what to do about it.
    Message(String),
    /// The reader of standard output went away (`esker scan … | head`): end quietly.
    BrokenPipe,
}

impl Failure {
    /// A failure that says this.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure::Message(text.into().replace('\n', " "))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.kind() {
            ErrorKind::Io(io::ErrorKind::BrokenPipe) => Failure::BrokenPipe,
            ErrorKind::Locked => Failure::new(format!("{error}: end the program that has it open")),
            _ => Failure::new(error.to_string()),
        }
    }
}

/// An error of writing to standard output: everything else has a path and gets it where it occurs.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::new(format!("writing the output: {error}")),
        }
    }
}
