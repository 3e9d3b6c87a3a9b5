//! The immutable list of levels.
