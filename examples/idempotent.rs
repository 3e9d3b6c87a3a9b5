//! A payment service behind a queue that delivers at least once: every order is charged once, no
//! matter how often it arrives, on how many threads, before or after a restart. And two people who
//! want the same seat: one gets it.
//!
//! `cargo run --example idempotent`

use esker::{Counter, Db, ErrorKind, EventId, Keyspace, KeyspaceOptions, Outcome};

const ORDERS: u64 = 200;
const PRICE: i64 = 25;

/// Charges an order. Safe to call again whenever the caller is in doubt.
fn charge(db: &Db, balances: &Keyspace, order: u64) -> esker::Result<Outcome> {
    let mut batch = db.batch();
    batch.merge(balances, "customer:7", -PRICE).merge(balances, "shop", PRICE);
    batch.put(db, format!("receipt:{order}"), "paid");
    batch.commit_once(EventId::new("orders", &order.to_be_bytes()))
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("payments");
    let operator = || KeyspaceOptions::new().merge(Counter::checked());
    let mut first = Vec::new();
    {
        let db = Db::open(&path)?;
        let balances = db.keyspace("balances", operator())?;
        for order in 0..ORDERS {
            first.push(charge(&db, &balances, order)?.seqno());
        }
        // The queue was not told in time: everything comes again, on two threads at once.
        std::thread::scope(|scope| {
            let again =
                || (0..ORDERS).try_for_each(|order| charge(&db, &balances, order).map(drop));
            let workers = [scope.spawn(again), scope.spawn(again)];
            workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
        })?;
    } // and the service restarts
    let db = Db::open(&path)?;
    let balances = db.keyspace("balances", operator())?;
    for order in 0..ORDERS {
        let seqno = first[order as usize];
        assert_eq!(charge(&db, &balances, order)?, Outcome::Duplicate { seqno });
    }
    let shop = balances.get("shop")?.and_then(|value| Counter::decode(&value));
    assert_eq!(shop, Some(ORDERS as i64 * PRICE), "every order was charged once");

    db.put_if_absent("seat:12A", "Ada")?;
    let taken = db.put_if_absent("seat:12A", "Grace").unwrap_err();
    assert_eq!(taken.kind(), &ErrorKind::Conflict);
    println!("{ORDERS} orders arrived four times and were charged once; {taken}");
    Ok(())
}
