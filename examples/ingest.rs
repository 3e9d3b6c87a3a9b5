//! A shop that takes orders faster than it can book them: an order is accepted once it is in the log
//! of a queue, and booked in the background, exactly once, together with the stock and the takings.
//! An order that cannot be booked does not hold up the others: it becomes a dead letter.
//!
//! `cargo run --example ingest`

use esker::{
    Batch, Counter, Db, Durability, Event, IngestOptions, IngestQueue, Keyspace, KeyspaceOptions,
};

const ORDERS: u64 = 10_000;

/// Books orders: "article price". What this returns as an error is tried again, then given up.
fn book(totals: Keyspace) -> impl FnMut(&[Event<'_>], &mut Batch) -> esker::HandlerResult {
    move |events, batch| {
        for event in events {
            let order = std::str::from_utf8(event.bytes)?;
            let (article, price) =
                order.split_once(' ').ok_or("an order is an article and a price")?;
            let price: i64 = price.parse()?;
            batch.merge(&totals, format!("sold:{article}"), 1);
            batch.merge(&totals, format!("customer:{}", event.key.escape_ascii()), price);
            batch.merge(&totals, "takings", price);
        }
        Ok(())
    }
}

fn number(totals: &Keyspace, key: &str) -> esker::Result<i64> {
    Ok(totals.get(key)?.map_or(0, |value| Counter::decode(&value).expect("a counter")))
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("shop"))?;
    let totals = db.keyspace("totals", KeyspaceOptions::new().merge(Counter::default()))?;

    let mut options = IngestOptions::default();
    options.tries_max = 2;
    let orders = IngestQueue::open(&db, "orders", options.clone(), book(totals.clone()))?;
    for number in 0..ORDERS {
        let customer = format!("{}", number % 100);
        orders.push(&customer, format!("article-{} 3", number % 7))?;
    }
    // One that has to survive power loss before the customer hears of it, and one that is nonsense.
    orders.push_with("vip", "article-0 1000", Durability::Disk)?;
    orders.push("troll", "; drop table orders")?;
    // As if the process had been killed here: what is not booked yet is booked after the next start.
    drop(orders);

    let orders = IngestQueue::open(&db, "orders", options, book(totals.clone()))?;
    orders.flush()?;
    assert_eq!(number(&totals, "takings")?, ORDERS as i64 * 3 + 1000);
    assert_eq!(number(&totals, "customer:vip")?, 1000);
    for letter in orders.dead_letters() {
        let letter = letter?;
        println!("not booked, after {} tries: {}", letter.tries, letter.error);
        assert_eq!(letter.key, b"troll");
    }
    assert_eq!(orders.dead_letters().count(), 1);
    println!("{}", orders.stats());
    orders.close()
}
