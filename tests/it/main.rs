//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "cli")]
mod cli;
mod examples;
#[cfg(feature = "testing")]
mod fixture;
#[cfg(unix)]
mod kill;
mod layers;
#[cfg(feature = "testing")]
mod resume;
mod verbs;
