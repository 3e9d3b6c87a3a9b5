//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "cli")]
mod cli;
mod examples;
mod verbs;
