//! A file system that leaves out, or delays, what one place in the engine asks for: to show that
//! some test would notice.
//!
//! A harness first runs with [`SabotageFs::none`] and asks for [`SabotageFs::seen`], then runs
//! once for each place that is listed there. A run that reports no violation is either a test
//! that is missing or a sync that is redundant.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::intercept::{Call, Intercepted, Interceptor, Select, Verdict};
use crate::fs::{Fs, current_site};

/// What happens to the calls of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// They report success and do nothing. Calls that return something are done.
    Skip,
    /// Syncs and renames report success and happen after the next call that changes something.
    /// Other calls are done.
    Delay,
}

/// A place: the site if it was named (see [`crate::fs::site`]), and the name of the call.
pub type Place = (Option<&'static str>, &'static str);

/// Decides which calls are left out.
#[derive(Debug)]
pub struct Saboteur {
    damage: Option<(Damage, Select)>,
    /// Of the calls that match, only this one.
    only: Option<u64>,
    state: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    places: BTreeMap<Place, u64>,
    matched: u64,
    damaged: u64,
}

impl Interceptor for Saboteur {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let mut state = self.state.lock();
        if call.changes() {
            *state.places.entry((current_site(), call.name)).or_default() += 1;
        }
        let Some((damage, _)) = self.damage.as_ref().filter(|(_, on)| on.matches(call)) else {
            return Verdict::Proceed;
        };
        let index = state.matched;
        state.matched += 1;
        if self.only.is_some_and(|only| only != index) {
            return Verdict::Proceed;
        }
        match damage {
            Damage::Skip => {
                state.damaged += 1;
                Verdict::Skip
            }
            Damage::Delay if call.is_sync() || call.name == "rename" => {
                state.damaged += 1;
                Verdict::Delay
            }
            Damage::Delay => Verdict::Proceed,
        }
    }
}

/// A file system with a saboteur.
pub type SabotageFs = Intercepted<Saboteur>;

impl SabotageFs {
    /// Damages nothing, to see what there is to damage.
    #[must_use]
    pub fn none(inner: Arc<dyn Fs>) -> SabotageFs {
        let state = Mutex::default();
        Intercepted::over(inner, Saboteur { damage: None, only: None, state })
    }

    /// Damages all of these calls.
    #[must_use]
    pub fn all(inner: Arc<dyn Fs>, damage: Damage, on: Select) -> SabotageFs {
        let (damage, state) = (Some((damage, on)), Mutex::default());
        Intercepted::over(inner, Saboteur { damage, only: None, state })
    }

    /// Damages the n-th of these calls, from 0.
    #[must_use]
    pub fn nth(inner: Arc<dyn Fs>, damage: Damage, on: Select, n: u64) -> SabotageFs {
        let (damage, state) = (Some((damage, on)), Mutex::default());
        Intercepted::over(inner, Saboteur { damage, only: Some(n), state })
    }

    /// The places from which calls that change something came, and how many.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<Place, u64> {
        self.interceptor().state.lock().places.clone()
    }

    /// How many calls were damaged. If none was, the run showed nothing.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.interceptor().state.lock().damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::sim::{SimFs, Survival};
    use crate::fs::site;
    use std::path::Path;

    /// Returns the durable bytes at each of four moments.
    fn work(sim: &SimFs, fs: &SabotageFs) -> Vec<String> {
        let (dir, path) = (Path::new("/"), Path::new("/a"));
        let durable = || {
            let after = sim.snapshot().crash(&Survival::NothingUnsynced);
            after.contents(path).map_or("none".into(), |bytes| String::from_utf8(bytes).unwrap())
        };
        let file = fs.create(path).unwrap();
        file.write_at(0, b"1").unwrap();
        {
            let _site = site("first");
            file.sync().unwrap();
        }
        fs.sync_dir(dir).unwrap();
        let mut seen = vec![durable()];
        file.write_at(1, b"2").unwrap();
        seen.push(durable());
        {
            let _site = site("second");
            file.sync().unwrap();
        }
        seen.push(durable());
        fs.create(Path::new("/b")).unwrap();
        seen.push(durable());
        seen
    }

    #[test]
    fn one_place_is_left_out_or_delayed() {
        let run = |make: &dyn Fn(Arc<dyn Fs>) -> SabotageFs| {
            let sim = SimFs::new();
            let fs = make(Arc::new(sim.clone()));
            (work(&sim, &fs), fs.damaged(), fs)
        };
        let (states, damaged, fs) = run(&SabotageFs::none);
        assert_eq!((states, damaged), (["1", "1", "12", "12"].map(String::from).to_vec(), 0));
        let expected: BTreeMap<Place, u64> = [
            ((None, "create"), 2),
            ((None, "write"), 2),
            ((None, "sync_dir"), 1),
            ((Some("first"), "sync"), 1),
            ((Some("second"), "sync"), 1),
        ]
        .into();
        assert_eq!(fs.seen(), expected);

        let expect = |damage, on: Select, n: Option<u64>, expected: [&str; 4]| {
            let (states, damaged, _) = run(&|inner| match n {
                Some(n) => SabotageFs::nth(inner, damage, on.clone(), n),
                None => SabotageFs::all(inner, damage, on.clone()),
            });
            assert_eq!((states, damaged), (expected.map(String::from).to_vec(), 1), "{on:?}");
        };
        let at = |name| Select::all().site(name);
        expect(Damage::Skip, at("first"), None, ["", "", "12", "12"]);
        expect(Damage::Skip, at("second"), None, ["1", "1", "1", "1"]);
        expect(Damage::Delay, at("second"), None, ["1", "1", "1", "12"]);
        expect(Damage::Skip, Select::all().name("sync_dir"), None, ["none"; 4]);
        let syncs = Select::all().name("sync").file("a");
        expect(Damage::Skip, syncs, Some(1), ["1", "1", "1", "1"]);
    }
}
