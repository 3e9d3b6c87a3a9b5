//! How a process or a machine ends, as a value and as text.
//!
//! The text is part of what reruns a case: `kill`, `none`, `all`, `names`, `data`, `last-name`,
//! `subset-5`, `only-3`, `but-3`, `torn-16-zero-123` (unit, hole, seed).

use std::fmt;
use std::str::FromStr;

use esker::fs::sim::{Hole, Image, SimFs, Survival, TEAR_UNITS};

use crate::crash::enumerate::Plan;

/// How a process or a machine ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Kill,
    Power(Survival),
}

impl End {
    /// What it is counted as.
    pub fn policy(&self) -> &'static str {
        match self {
            End::Kill => "kill",
            End::Power(Survival::NothingUnsynced) => "1 nothing un-synced",
            End::Power(Survival::Everything) => "2 everything",
            End::Power(Survival::DirectoryOnly) => "3 directory operations only",
            End::Power(Survival::DataOnly) => "4 data only",
            End::Power(Survival::LastDirectoryOperationOnly) => "5 last directory operation only",
            End::Power(Survival::Random { tear, hole, .. }) => torn_policy(*tear, *hole),
            End::Power(Survival::Subset { .. }) => "7 all subsets",
            End::Power(Survival::Only { .. }) => "7 single keeps",
            End::Power(Survival::AllBut { .. }) => "7 single drops",
        }
    }

    /// What is left of this image.
    pub fn of(&self, image: &Image) -> SimFs {
        match self {
            End::Kill => image.kill(),
            End::Power(survival) => image.crash(survival),
        }
    }
}

fn torn_policy(tear: usize, hole: Hole) -> &'static str {
    match (tear, hole) {
        (1, Hole::Zero) => "6 torn at 1, holes of zeros",
        (1, Hole::Garbage) => "6 torn at 1, holes of garbage",
        (16, Hole::Zero) => "6 torn at 16, holes of zeros",
        (16, Hole::Garbage) => "6 torn at 16, holes of garbage",
        (512, Hole::Zero) => "6 torn at 512, holes of zeros",
        (512, Hole::Garbage) => "6 torn at 512, holes of garbage",
        (_, Hole::Zero) => "6 torn at 4096, holes of zeros",
        (_, Hole::Garbage) => "6 torn at 4096, holes of garbage",
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Kill => f.write_str("kill"),
            End::Power(Survival::NothingUnsynced) => f.write_str("none"),
            End::Power(Survival::Everything) => f.write_str("all"),
            End::Power(Survival::DirectoryOnly) => f.write_str("names"),
            End::Power(Survival::DataOnly) => f.write_str("data"),
            End::Power(Survival::LastDirectoryOperationOnly) => f.write_str("last-name"),
            End::Power(Survival::Subset { mask }) => write!(f, "subset-{mask}"),
            End::Power(Survival::Only { kept }) => write!(f, "only-{kept}"),
            End::Power(Survival::AllBut { dropped }) => write!(f, "but-{dropped}"),
            End::Power(Survival::Random { seed, tear, hole }) => {
                let hole = if *hole == Hole::Zero { "zero" } else { "garbage" };
                write!(f, "torn-{tear}-{hole}-{seed}")
            }
        }
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        let parts: Vec<&str> = text.split('-').collect();
        let survival = match parts[..] {
            ["kill"] => return Ok(End::Kill),
            ["none"] => Survival::NothingUnsynced,
            ["all"] => Survival::Everything,
            ["names"] => Survival::DirectoryOnly,
            ["data"] => Survival::DataOnly,
            ["last", "name"] => Survival::LastDirectoryOperationOnly,
            ["subset", mask] => Survival::Subset { mask: number(mask)? },
            ["only", kept] => Survival::Only { kept: number(kept)? as usize },
            ["but", dropped] => Survival::AllBut { dropped: number(dropped)? as usize },
            ["torn", tear, hole, seed] => {
                let hole = if hole == "zero" { Hole::Zero } else { Hole::Garbage };
                let (seed, tear) = (number(seed)?, number(tear)? as usize);
                Survival::Random { seed, tear, hole }
            }
            _ => return Err(format!("{text:?} is no end")),
        };
        Ok(End::Power(survival))
    }
}

/// Effects of which a thorough look tries all subsets.
const SUBSETS_THOROUGH: usize = 10;

/// The ends worth trying on an image. The same seed gives the same list.
pub fn ends(image: &Image, plan: &Plan, seed: u64) -> Vec<End> {
    let mut all = vec![End::Kill, End::Power(Survival::NothingUnsynced)];
    let count = image.pending_effects();
    if count == 0 {
        return all;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut power = |survival| all.push(End::Power(survival));
    power(Survival::Everything);
    power(Survival::DirectoryOnly);
    power(Survival::DataOnly);
    power(Survival::LastDirectoryOperationOnly);
    let is_thorough = plan.thorough_every > 0 && random.usize(..plan.thorough_every) == 0;
    if count <= plan.subsets_max || is_thorough && count <= SUBSETS_THOROUGH {
        (1..(1 << count) - 1).for_each(|mask| power(Survival::Subset { mask }));
    } else {
        let singles = if is_thorough { count } else { plan.singles };
        let some = random.choose_multiple(0..count, singles);
        some.into_iter().for_each(|dropped| power(Survival::AllBut { dropped }));
        let some = random.choose_multiple(0..count, singles);
        some.into_iter().for_each(|kept| power(Survival::Only { kept }));
    }
    for _ in 0..plan.random {
        let tear = TEAR_UNITS[random.usize(..TEAR_UNITS.len())];
        let hole = if random.bool() { Hole::Zero } else { Hole::Garbage };
        power(Survival::Random { seed: random.u64(..), tear, hole });
    }
    all
}

/// Simpler ends of the same image, the simplest first: what a failure is reduced to.
pub fn simpler(image: &Image, end: &End) -> Vec<End> {
    if *end == End::Kill {
        return Vec::new();
    }
    let count = image.pending_effects();
    let fixed = [Survival::NothingUnsynced, Survival::Everything];
    let but = (0..count).map(|dropped| Survival::AllBut { dropped });
    let only = (0..count).map(|kept| Survival::Only { kept });
    let all = fixed.into_iter().chain(but).chain(only).map(End::Power);
    all.take_while(|simpler| simpler != end).collect()
}

#[test]
fn ends_are_read_as_they_are_written() {
    let random = |hole| Survival::Random { seed: u64::MAX, tear: 16, hole };
    let all = [
        Survival::NothingUnsynced,
        Survival::Everything,
        Survival::DirectoryOnly,
        Survival::DataOnly,
        Survival::LastDirectoryOperationOnly,
        Survival::Subset { mask: 5 },
        Survival::Only { kept: 3 },
        Survival::AllBut { dropped: 7 },
        random(Hole::Zero),
        random(Hole::Garbage),
    ];
    for end in all.map(End::Power).into_iter().chain([End::Kill]) {
        assert_eq!(end.to_string().parse(), Ok(end));
    }
    assert!("torn-16".parse::<End>().is_err());
}
