//! Threads, clock and waiting, behind a seam: real threads, or a seeded stepper in tests.
