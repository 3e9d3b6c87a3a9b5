//! Money moves between accounts, and an audit log says so: a batch is one commit over several
//! keyspaces, which every reader and every crash sees whole or not at all.
//!
//! `cargo run --example batch`

use std::sync::atomic::{AtomicBool, Ordering};

use esker::{Counter, Db, Durability, Keyspace, KeyspaceOptions};

const ACCOUNTS: u64 = 8;
const START: i64 = 1_000;
const TRANSFERS: u64 = 2_000;

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("bank"))?;
    let accounts = db.keyspace("accounts", KeyspaceOptions::new().merge(Counter::checked()))?;
    let audit = db.keyspace("audit", KeyspaceOptions::new())?;

    let mut opening = db.batch();
    for account in 0..ACCOUNTS {
        opening.merge(&accounts, account.to_be_bytes(), START);
    }
    opening.commit_with(Durability::Disk)?; // this one survives a power loss, too

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whenever somebody looks, no money is on its way.
        let auditor = scope.spawn(|| -> esker::Result<u32> {
            let mut audits = 0;
            while audits == 0 || !done.load(Ordering::Relaxed) {
                assert_eq!(total(&accounts)?, ACCOUNTS as i64 * START);
                audits += 1;
            }
            Ok(audits)
        });
        let transferred = transfer_all(&db, &accounts, &audit);
        done.store(true, Ordering::Relaxed);
        let audits = auditor.join().expect("no panic")?;
        println!("{TRANSFERS} transfers, audited {audits} times meanwhile");
        transferred
    })?;

    // The audit log and the balances agree: replayed, it leads to the same ones.
    let mut replayed = [START; ACCOUNTS as usize];
    for entry in audit.iter() {
        let (_, line) = entry?;
        let [from, to, amount] = *line else { panic!("an audit line has three bytes") };
        replayed[usize::from(from)] -= i64::from(amount);
        replayed[usize::from(to)] += i64::from(amount);
    }
    for (account, balance) in (0..ACCOUNTS).zip(replayed) {
        let stored = accounts.get_with(account.to_be_bytes(), Counter::decode)?.flatten();
        assert_eq!(stored, Some(balance));
    }
    assert_eq!(audit.iter().count() as u64, TRANSFERS);
    Ok(())
}

fn transfer_all(db: &Db, accounts: &Keyspace, audit: &Keyspace) -> esker::Result<()> {
    let mut rng = fastrand::Rng::with_seed(1);
    for number in 0..TRANSFERS {
        let (from, to, amount) = (rng.u64(..ACCOUNTS), rng.u64(..ACCOUNTS), rng.u8(1..=100));
        let mut batch = db.batch();
        batch
            .merge(accounts, from.to_be_bytes(), -i64::from(amount))
            .merge(accounts, to.to_be_bytes(), i64::from(amount))
            .put(audit, number.to_be_bytes(), [from as u8, to as u8, amount]);
        batch.commit()?;
    }
    Ok(())
}

/// All balances together. A scan is a consistent snapshot, with no snapshot asked for.
fn total(accounts: &Keyspace) -> esker::Result<i64> {
    accounts.iter().map(|entry| Ok(Counter::decode(&entry?.1).expect("a number"))).sum()
}
