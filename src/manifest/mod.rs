//! The log of edits to the version.
