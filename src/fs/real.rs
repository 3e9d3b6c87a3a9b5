//! The operating system as a file system (Linux first).
