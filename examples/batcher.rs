//! A log collector whose lines must survive power loss: many connections, each waiting for its own
//! line only, share the syncs of the disk.
//!
//! `cargo run --example batcher`

use std::time::Instant;

use esker::{Batcher, BatcherOptions, Db, Durability};

const CONNECTIONS: u32 = 8;
const LINES: u32 = 250;

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("lines"))?;
    let mut options = BatcherOptions::default();
    options.durability = Some(Durability::Disk);
    let batcher = Batcher::new(&db, options)?;

    let began = Instant::now();
    std::thread::scope(|scope| {
        let connect = |connection: u32| {
            let (db, batcher) = (&db, &batcher);
            scope.spawn(move || -> esker::Result<()> {
                let mut unacknowledged = Vec::new();
                for line in 0..LINES {
                    let key = format!("{connection:03}/{line:06}");
                    unacknowledged.push(batcher.put(db, key, "GET /index.html 200")?);
                }
                // The client is told "stored" only now.
                unacknowledged.into_iter().try_for_each(esker::ItemTicket::wait)
            })
        };
        let connections: Vec<_> = (0..CONNECTIONS).map(connect).collect();
        connections.into_iter().try_for_each(|connection| connection.join().expect("no panic"))
    })?;
    let count = db.iter().count();
    assert_eq!(count, (CONNECTIONS * LINES) as usize);
    println!("{count} lines on the disk in {:.0?}", began.elapsed());
    Ok(())
}
