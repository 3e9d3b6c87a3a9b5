//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "testing")]
mod crash;
mod examples;
mod verbs;
