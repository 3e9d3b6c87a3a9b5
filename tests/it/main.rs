//! Integration tests, one binary: a module for each subject.

#[cfg(feature = "testing")]
mod bad_input;
#[cfg(feature = "testing")]
mod checkpoint;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "testing")]
mod concurrency;
#[cfg(feature = "testing")]
mod corpus;
#[cfg(feature = "testing")]
mod crash;
mod docs;
mod examples;
#[cfg(feature = "testing")]
mod finally;
#[cfg(feature = "testing")]
mod fixture;
#[cfg(feature = "testing")]
mod http;
#[cfg(feature = "testing")]
mod ingest;
mod layers;
#[cfg(all(target_os = "linux", feature = "testing"))]
mod memory;
#[cfg(feature = "testing")]
mod model;
#[cfg(feature = "testing")]
mod once;
#[cfg(feature = "testing")]
mod overload;
#[cfg(all(unix, feature = "testing"))]
mod process;
#[cfg(feature = "testing")]
mod regressions;
#[cfg(feature = "testing")]
mod repair;
#[cfg(feature = "testing")]
mod resources;
#[cfg(feature = "testing")]
mod resume;
#[cfg(feature = "testing")]
mod salvage;
#[cfg(feature = "testing")]
mod score;
#[cfg(feature = "testing")]
mod settings;
#[cfg(feature = "testing")]
mod sharded;
#[cfg(feature = "testing")]
mod slow_disk;
#[cfg(feature = "testing")]
mod toolkit;
mod verbs;
