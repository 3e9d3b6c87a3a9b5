//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "testing")]
mod concurrency;
mod examples;
#[cfg(feature = "testing")]
mod model;
#[cfg(feature = "testing")]
mod regressions;
#[cfg(feature = "testing")]
mod resume;
mod verbs;
