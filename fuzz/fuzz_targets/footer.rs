//! The body is `esker::fuzz`, where the tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| esker::fuzz::run("footer", bytes));
