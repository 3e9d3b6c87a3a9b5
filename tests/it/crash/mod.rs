//! Crash safety: every call to the file system as the last one.

mod oracle;
mod workload;

use crate::crash::workload::Workload;

#[test]
fn runs_are_deterministic() {
    let t = std::time::Instant::now();
    let run = Workload::new(1, 1000).run();
    println!("{} shots {} steps {} calls {:?}", run.shots.len(), run.oracle.len(), run.calls, t.elapsed());
}
