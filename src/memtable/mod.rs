//! The sorted, concurrent buffer of recent writes.
