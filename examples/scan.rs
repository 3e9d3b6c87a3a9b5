//! A time series: measurements by sensor and time, read by prefix, by range, newest first, and as
//! they were at a moment while new ones come in.
//!
//! `cargo run --example scan`

use esker::Db;

const SENSORS: u16 = 5;
const HOURS: u64 = 240;

/// Big-endian numbers sort as bytes like the numbers do: all of a sensor together, oldest first.
fn key(sensor: u16, hour: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&sensor.to_be_bytes());
    key[2..].copy_from_slice(&hour.to_be_bytes());
    key
}

fn degrees(value: &[u8]) -> i16 {
    i16::from_le_bytes(value.try_into().expect("a value has two bytes"))
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("weather"))?;
    for hour in 0..HOURS {
        for sensor in 0..SENSORS {
            let value = (hour % 24) as i16 + sensor as i16;
            db.put(key(sensor, hour), value.to_le_bytes())?;
        }
    }

    // Everything of one sensor: its prefix.
    assert_eq!(db.prefix(3u16.to_be_bytes()).count() as u64, HOURS);

    // The warmest hour of one day: a range of keys.
    let mut warmest = i16::MIN;
    for entry in db.range(key(3, 48)..key(3, 72)) {
        warmest = warmest.max(degrees(&entry?.1));
    }
    assert_eq!(warmest, 23 + 3);

    // The three newest measurements: the same backward, which costs no more.
    let newest: esker::Result<Vec<_>> = db.prefix(3u16.to_be_bytes()).rev().take(3).collect();
    let hours: Vec<[u8; 10]> = (HOURS - 3..HOURS).rev().map(|hour| key(3, hour)).collect();
    assert!(newest?.iter().map(|(key, _)| &key[..]).eq(hours.iter().map(|key| &key[..])));

    // A report over several reads at one moment: what comes in meanwhile is not in it.
    let moment = db.snapshot();
    db.put(key(3, HOURS), 99i16.to_le_bytes())?;
    db.delete(key(3, 0))?;
    assert_eq!(moment.prefix(3u16.to_be_bytes()).count() as u64, HOURS);
    assert_eq!(moment.get(key(3, HOURS))?, None);
    assert_eq!(moment.get(key(3, 0))?.as_deref().map(degrees), Some(3));
    drop(moment);
    assert_eq!(db.get(key(3, HOURS))?.as_deref().map(degrees), Some(99));

    // A cursor lends keys and values and copies nothing: the mean over all, and a jump.
    let (mut sum, mut count) = (0, 0);
    let mut cursor = db.cursor();
    cursor.seek_to_first()?;
    while cursor.valid() {
        sum += i64::from(degrees(cursor.value()));
        count += 1;
        cursor.next()?;
    }
    assert_eq!(count, u64::from(SENSORS) * HOURS);
    cursor.seek_before(key(4, 0))?; // the newest of the sensor before
    assert_eq!(cursor.key(), key(3, HOURS));
    println!("{count} measurements, {:.1} degrees on average", sum as f64 / count as f64);
    Ok(())
}
