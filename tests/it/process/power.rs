//! Real power cuts, as near as software comes: ext4 on a loop device, shut down under the writers by
//! its own ioctl, with or without flushing its journal. What was not synced is gone.
//!
//! Needs root and a loop device, so it is asked for by name:
//! `cargo test --release --all-features --test it process::power -- --ignored --nocapture`;
//! `ESKER_CUTS` sets how many cuts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Rounds;
use crate::settings::{number, tally};

const IMAGE_BYTES: u64 = 256 << 20;
/// Stop at once; the journal's buffers are lost.
const NO_FLUSH: u32 = 2;
/// Stop after the journal was flushed.
const FLUSH: u32 = 1;

/// An ext4 of its own, unmounted when it drops.
struct Mount {
    image: PathBuf,
    at: PathBuf,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Mount {
    fn new(home: &Path) -> Mount {
        let (image, at) = (home.join("image"), home.join("mount"));
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let mount = Mount { image, at };
        mount.mount();
        mount
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(&self.at));
    }

    /// Cuts the file system off.
    fn cut(&self, how: u32) {
        // No crate that tests use has EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32).
        let code = format!(
            "import fcntl, os, struct, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), \
             0x8004587d, struct.pack('I', {how}))"
        );
        run(Command::new("python3").args(["-c", &code]).arg(&self.at));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

#[test]
#[ignore = "needs root, a loop device and python3: see the module's comment"]
fn what_is_durable_survives_a_cut_of_the_file_system() {
    let cuts = number("ESKER_CUTS").unwrap_or(20);
    let seed = number("ESKER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ESKER_SEED={seed} ESKER_CUTS={cuts}");
    let mut random = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    let mount = Mount::new(home.path());
    let mut rounds = Rounds::new(true, Some(&mount.at.join("db")));
    for round in 0..cuts {
        let mut child = rounds.start(&[], None, round % 4 == 3);
        std::thread::sleep(Duration::from_micros(random.u64(20_000..600_000)));
        mount.cut(if random.bool() { FLUSH } else { NO_FLUSH });
        // Its writers may have met the error by now, or a mapping's SIGBUS.
        let _ = child.kill();
        child.wait().unwrap();
        mount.unmount();
        mount.mount();
        rounds.check(&format!("cut {round}, ESKER_SEED={seed}"), false, random.bool());
    }
    println!("{cuts} cuts, {} steps found", rounds.steps());
    tally(&[("power cuts", cuts)]);
    assert!(rounds.steps() > cuts * 10, "hardly anything was durable");
}
