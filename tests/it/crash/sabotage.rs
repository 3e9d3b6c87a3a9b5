//! Can the harness fail? Every place in the engine that syncs is switched off in turn, and the
//! enumeration of a short run must notice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker::fs::Fs;
use esker::fs::intercept::Select;
use esker::fs::sabotage::{Damage, Place, SabotageFs};
use esker::fs::sim::SimFs;

use crate::crash::enumerate::{Ledger, Plan, enumerate};
use crate::crash::workload::Workload;

/// Places whose loss no crash can show, and why.
const REDUNDANT: [(&str, &str); 1] = [(
    "open.table.sync_dir sync_dir",
    "before CURRENT names the manifest that names the tables, the directory is synced again, for \
     the names of the log and of that manifest: log.create.sync_dir, manifest.create.sync_dir",
)];

fn plan() -> Plan {
    Plan {
        every: 1,
        random: 1,
        subsets_max: 3,
        singles: 1,
        again_every: 4,
        deeper_every: vec![300],
        quota: Duration::from_secs(20),
        threads: 2,
    }
}

const ACTIONS: usize = 120;
const SEEDS: u64 = 4;

fn name_of((site, call): &Place) -> String {
    format!("{} {call}", site.unwrap_or("(no name)"))
}

/// The places that sync in runs of these seeds, and how often.
fn places() -> BTreeMap<Place, u64> {
    let mut all = BTreeMap::new();
    for seed in 0..SEEDS {
        let seen = Arc::new(Mutex::new(None));
        let kept = seen.clone();
        Workload { watch: false, ..Workload::new(seed, ACTIONS) }.run_behind(move |disk: SimFs| {
            let fs = SabotageFs::none(Arc::new(disk));
            *kept.lock().unwrap() = Some(fs.clone());
            Arc::new(fs) as Arc<dyn Fs>
        });
        let fs: SabotageFs = seen.lock().unwrap().take().expect("it ran");
        for (place, count) in fs.seen() {
            if matches!(place.1, "sync" | "sync_dir") {
                *all.entry(place).or_default() += count;
            }
        }
    }
    all
}

/// The first violation with this place switched off, of any seed.
fn noticed(place: &Place, damage: Damage) -> Option<String> {
    let select = Select::all().name(place.1);
    let select = match place.0 {
        Some(site) => select.site(site),
        None => select,
    };
    (0..SEEDS).find_map(|seed| {
        let select = select.clone();
        let workload = Workload::new(seed, ACTIONS);
        let run = std::panic::catch_unwind(|| {
            workload
                .run_behind(move |disk| Arc::new(SabotageFs::all(Arc::new(disk), damage, select)))
        });
        match run {
            Ok(run) => {
                let found = enumerate(&run, &workload, &plan(), &Ledger::default());
                found.err().map(|found| found.text)
            }
            Err(_) => Some("the run itself failed".to_string()),
        }
    })
}

#[test]
fn every_sync_that_is_left_out_is_noticed() {
    let places = places();
    assert!(places.keys().all(|place| place.0.is_some()), "every sync has a name: {places:?}");
    let (mut seen, mut blind) = (Vec::new(), Vec::new());
    for (place, count) in &places {
        let name = name_of(place);
        match noticed(place, Damage::Skip) {
            Some(text) => {
                let first = text.lines().next().unwrap_or_default().to_string();
                println!("noticed    {name} ({count} calls): {first}");
                seen.push(name);
            }
            None => match REDUNDANT.iter().find(|(redundant, _)| *redundant == name) {
                Some((_, why)) => println!("redundant  {name} ({count} calls): {why}"),
                None => {
                    println!("NOT SEEN   {name} ({count} calls)");
                    blind.push(name);
                }
            },
        }
    }
    println!("score: {} of {} noticed, {} redundant", seen.len(), places.len(), REDUNDANT.len());
    let stale = REDUNDANT.iter().find(|(name, _)| seen.iter().any(|seen| seen == name));
    assert_eq!(stale, None, "said to be redundant, and noticed");
    assert!(blind.is_empty(), "left out and not noticed: {blind:?}");
}
