//! Integration tests, one binary: what a user of the crate sees.

mod verbs;
