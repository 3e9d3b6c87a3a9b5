//! Sorted, immutable tables.
