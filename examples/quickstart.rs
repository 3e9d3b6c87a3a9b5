//! esker in twelve lines: the README's first screen.
//!
//! `cargo run --example quickstart`

use std::path::Path;

use esker::{Counter, Db, KeyspaceOptions};

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("data");
    quickstart(&path)?;

    // What was committed is there when the database is opened again.
    let db = Db::open(&path)?;
    let views = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default()))?;
    assert_eq!(views.get_with("article:42", Counter::decode)?.flatten(), Some(11));
    assert_eq!(db.get("user:1")?.as_deref(), Some(&b"Ada"[..]));
    db.close()
}

fn quickstart(path: &Path) -> esker::Result<()> {
    let db = Db::open(path)?;
    db.put("greeting", "hello")?;
    assert_eq!(db.get("greeting")?.as_deref(), Some(&b"hello"[..]));
    let views = db.keyspace("views", KeyspaceOptions::new().merge(Counter::default()))?;
    views.merge("article:42", 1)?; // adds without reading first
    let mut batch = db.batch(); // atomic, across keyspaces
    batch.put(&db, "user:1", "Ada").put(&db, "user:2", "Linus").merge(&views, "article:42", 10);
    batch.commit()?; // survives a kill of the process from here on
    for entry in db.range("user:".."user;").rev() {
        let (key, value) = entry?; // a consistent snapshot, here backward
        println!("{key:?} is {value:?}");
    }
    Ok(())
}
