//! Choosing and running compactions.
