//! Begins a manifest, makes it the live one, and appends edits to it.
//!
//! Beginning one takes these steps, in this order; each sync is marked with the crash that it
//! guards against, and with the name under which tests switch it off:
//!
//! 1. Write manifest-N: header and the state as one edit. Sync it.
//! 2. Sync the directory.
//! 3. Write CURRENT.tmp. Sync it.
//! 4. Rename it over CURRENT. Sync the directory.
//!
//! Only then may the caller remove the manifest before, or create tables and logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::Checksum;
use crate::error::{DegradedCause, Error, Result};
use crate::file::{self, CURRENT, FileHeader, FileId, FileKind, FileNumber, Lsn};
use crate::fs::{self, File, Fs};
use crate::key::SeqNo;
use crate::manifest::current_line;
use crate::manifest::edit::Edit;
use crate::manifest::state::State;
use crate::record::{RecordHeader, RecordKind, put_record};

/// The live manifest, open for appending.
#[derive(Debug)]
pub(crate) struct ManifestWriter {
    path: PathBuf,
    file: Arc<dyn File>,
    checksum: Checksum,
    /// Length of the file; everything before is durable.
    bytes: u64,
    snapshot_bytes: u64,
    /// Number of the next edit.
    next_edit: u64,
    /// An append failed: what lies behind `bytes` is unknown.
    failed: bool,
}

impl ManifestWriter {
    /// Begins the manifest of this number with `state`, and makes it the live one.
    ///
    /// The number must be unused: there must be no such file. Files that the state names must be
    /// durable, names and contents.
    ///
    /// # Errors
    /// Of the file system. It is then unknown which manifest is the live one, so nothing may be
    /// appended to the one before either, until another one, of another number, was begun.
    pub(crate) fn create(
        fs: &Arc<dyn Fs>,
        dir: &Path,
        number: FileNumber,
        state: &State,
    ) -> Result<ManifestWriter> {
        let path = FileKind::Manifest.path(dir, number);
        let mut header = FileHeader::new(FileKind::Manifest, FileId(fs.random_id()), number);
        if state.shard().is_some() {
            header.incompatible |= file::feature::SHARD;
        }
        let checksum = Checksum::new(header.id);
        let mut bytes = header.encode().to_vec();
        put_edit(&mut bytes, checksum, Lsn(0), 0, &state.to_edit());

        let file = fs.create(&path).map_err(|e| Error::io("create", &path, e))?;
        file.write_at(0, &bytes).map_err(|e| Error::io("write", &path, e))?;
        {
            // Else CURRENT can name a manifest whose snapshot is lost (LevelDB #189).
            let _site = fs::site("manifest.create.sync");
            file.sync().map_err(|e| Error::io("sync", &path, e))?;
        }
        {
            // Else CURRENT can name a manifest that has no name (LevelDB #196).
            let _site = fs::site("manifest.create.sync_dir");
            fs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
        }
        set_current(fs, dir, &current_line(number, header.id))?;

        let bytes = bytes.len() as u64;
        Ok(ManifestWriter {
            path,
            file,
            checksum,
            bytes,
            snapshot_bytes: bytes,
            next_edit: 1,
            failed: false,
        })
    }

    /// Appends an edit and makes it durable. The caller has applied it to its state, so it fits.
    ///
    /// # Errors
    /// Of the file system, and `Degraded` ever after: what a failed append left behind is
    /// unknown, so nothing may follow it (RocksDB #6316, LevelDB #161).
    pub(crate) fn append(&mut self, edit: &Edit) -> Result<()> {
        if self.failed {
            let error = Error::degraded(DegradedCause::Manifest);
            return Err(error.context(format!("append to {}", self.path.display())));
        }
        let lsn = Lsn(self.bytes - file::HEADER_BYTES as u64);
        let mut record = Vec::new();
        put_edit(&mut record, self.checksum, lsn, self.next_edit, edit);

        // Set before and cleared after, so that a panic in between counts as a failure too.
        self.failed = true;
        self.file.write_at(self.bytes, &record).map_err(|e| Error::io("write", &self.path, e))?;
        {
            // Else an acknowledged edit is lost, and the files that it made obsolete are gone
            // (RocksDB 6.12).
            let _site = fs::site("manifest.append.sync");
            self.file.sync().map_err(|e| Error::io("sync", &self.path, e))?;
        }
        self.failed = false;
        self.bytes += record.len() as u64;
        self.next_edit += 1;
        Ok(())
    }

    /// Length of the file.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of the file when it was begun. Once `bytes` is much larger, begin a new manifest
    /// of the next number, then remove this one.
    #[must_use]
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }
}

/// Makes CURRENT say `line`, durably.
fn set_current(fs: &Arc<dyn Fs>, dir: &Path, line: &str) -> Result<()> {
    let current = dir.join(CURRENT);
    let temporary = dir.join(format!("{CURRENT}{}", file::TEMPORARY_ENDING));
    let file =
        fs::create_anew(&**fs, &temporary).map_err(|e| Error::io("create", &temporary, e))?;
    file.write_at(0, line.as_bytes()).map_err(|e| Error::io("write", &temporary, e))?;
    {
        // Else CURRENT can be empty after the rename (LevelDB #74).
        let _site = fs::site("manifest.current.sync");
        file.sync().map_err(|e| Error::io("sync", &temporary, e))?;
    }
    {
        let _site = fs::site("manifest.current.rename");
        fs.rename(&temporary, &current).map_err(|e| Error::io("rename", &temporary, e))?;
    }
    // Else CURRENT can name the manifest before when that is removed already (LevelDB #195).
    let _site = fs::site("manifest.current.sync_dir");
    fs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

/// Appends the record of edit `number`, which begins at `lsn` of the manifest.
fn put_edit(out: &mut Vec<u8>, checksum: Checksum, lsn: Lsn, number: u64, edit: &Edit) {
    let mut payload = Vec::new();
    edit.encode(&mut payload);
    let header = RecordHeader {
        kind: RecordKind::Edit,
        payload_bytes: 0,
        payload_checksum: 0,
        // Everything before is durable: that is what makes damage in the middle provable.
        copied: lsn,
        durable: lsn,
        seqno: SeqNo(number),
    };
    put_record(out, checksum, lsn, header, &payload);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::io;

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::error::ErrorKind;
    use crate::fs::{Lock, LogRegion};
    use crate::manifest::edit::tests::{added, facts};
    use crate::manifest::state::tests::populated;

    /// Files in memory, and every call as a line of text.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct TracingFs(Arc<Mutex<Traced>>);

    #[derive(Debug, Default)]
    struct Traced {
        files: BTreeMap<String, Arc<Mutex<Vec<u8>>>>,
        trace: String,
        ids: u128,
        /// The call with so many before it fails.
        fails_at: Option<usize>,
    }

    #[derive(Debug)]
    struct TracedFile {
        name: String,
        contents: Arc<Mutex<Vec<u8>>>,
        fs: TracingFs,
    }

    fn name(path: &Path) -> String {
        path.file_name().unwrap().to_str().unwrap().to_string()
    }

    impl TracingFs {
        pub(crate) fn shared(&self) -> Arc<dyn Fs> {
            Arc::new(self.clone())
        }

        /// The calls since this was last asked.
        pub(crate) fn take_trace(&self) -> String {
            std::mem::take(&mut self.0.lock().trace)
        }

        pub(crate) fn fail_at(&self, call: Option<usize>) {
            self.0.lock().fails_at = call;
        }

        pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
            self.0.lock().files.get(name).map(|contents| contents.lock().clone())
        }

        pub(crate) fn set(&self, name: &str, contents: &[u8]) {
            let contents = Arc::new(Mutex::new(contents.to_vec()));
            self.0.lock().files.insert(name.to_string(), contents);
        }

        pub(crate) fn delete(&self, name: &str) {
            self.0.lock().files.remove(name).unwrap();
        }

        fn called(&self, call: &str) -> io::Result<()> {
            let mut fs = self.0.lock();
            writeln!(fs.trace, "{call}").unwrap();
            match fs.fails_at {
                Some(0) => Err(io::Error::other("as the test wants")),
                left => {
                    fs.fails_at = left.map(|left| left - 1);
                    Ok(())
                }
            }
        }

        fn file(&self, path: &Path, contents: Arc<Mutex<Vec<u8>>>) -> Arc<dyn File> {
            Arc::new(TracedFile { name: name(path), contents, fs: self.clone() })
        }
    }

    impl Fs for TracingFs {
        fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            self.called(&format!("create {}", name(path)))?;
            let mut fs = self.0.lock();
            if fs.files.contains_key(&name(path)) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let contents = Arc::default();
            fs.files.insert(name(path), Arc::clone(&contents));
            drop(fs);
            Ok(self.file(path, contents))
        }

        fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            let contents = self.0.lock().files.get(&name(path)).cloned();
            Ok(self.file(path, contents.ok_or(io::ErrorKind::NotFound)?))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.called(&format!("rename {} {}", name(from), name(to)))?;
            let mut fs = self.0.lock();
            let contents = fs.files.remove(&name(from)).ok_or(io::ErrorKind::NotFound)?;
            fs.files.insert(name(to), contents);
            Ok(())
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.called(&format!("remove {}", name(path)))?;
            let removed = self.0.lock().files.remove(&name(path));
            removed.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
        }

        fn list(&self, _: &Path) -> io::Result<Vec<String>> {
            Ok(self.0.lock().files.keys().cloned().collect())
        }

        fn sync_dir(&self, _: &Path) -> io::Result<()> {
            self.called("sync_dir")
        }

        fn random_id(&self) -> u128 {
            let mut fs = self.0.lock();
            fs.ids += 1;
            fs.ids << 64
        }

        fn boot_id(&self) -> u128 {
            0
        }

        fn create_log(&self, _: &Path, _: u64) -> io::Result<Arc<dyn LogRegion>> {
            unreachable!("a manifest is no log")
        }

        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            unreachable!("manifests are not linked")
        }

        fn remove_dir(&self, _: &Path) -> io::Result<()> {
            unreachable!("the directory stays")
        }

        fn create_dir_all(&self, _: &Path) -> io::Result<()> {
            unreachable!("the caller makes the directory")
        }

        fn lock(&self, _: &Path) -> io::Result<Box<dyn Lock>> {
            unreachable!("the caller takes the lock")
        }

        fn free_bytes(&self, _: &Path) -> io::Result<u64> {
            unreachable!("the caller watches the space")
        }
    }

    impl File for TracedFile {
        fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.fs.called(&format!("write {} at {offset}", self.name))?;
            let (mut contents, end) = (self.contents.lock(), offset as usize + data.len());
            let len = contents.len().max(end);
            contents.resize(len, 0);
            contents[offset as usize..end].copy_from_slice(data);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            self.fs.called(&format!("sync {}", self.name))
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.contents.lock().len() as u64)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let contents = self.contents.lock();
            let from = contents.get(offset as usize..offset as usize + buf.len());
            buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn allocate(&self, _: u64) -> io::Result<()> {
            unreachable!("manifests are not allocated ahead")
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!("manifests only grow")
        }

        fn map(&self) -> io::Result<Bytes> {
            unreachable!("manifests are read, not mapped")
        }
    }

    pub(crate) fn dir() -> &'static Path {
        Path::new("db")
    }

    /// An edit that fits `populated()`: table 15 comes to level 3, with numbers up to 20 + n.
    pub(crate) fn some_edit(n: u64) -> Edit {
        Edit {
            tables_added: vec![added(3, 0, facts(15 + n, ["a", "c"], [1, 2]))]
                .into_iter()
                .filter(|_| n == 0)
                .collect(),
            next_file: Some(FileNumber(20 + n)),
            ..Edit::default()
        }
    }

    #[test]
    fn the_order_of_calls() {
        let fs = TracingFs::default();
        fs.set("CURRENT.tmp", b"left by a crash");
        let state = populated();
        let mut writer =
            ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &state).unwrap();
        assert_eq!(
            fs.take_trace(),
            "create manifest-000004\n\
             write manifest-000004 at 0\n\
             sync manifest-000004\n\
             sync_dir\n\
             create CURRENT.tmp\n\
             remove CURRENT.tmp\n\
             create CURRENT.tmp\n\
             write CURRENT.tmp at 0\n\
             sync CURRENT.tmp\n\
             rename CURRENT.tmp CURRENT\n\
             sync_dir\n"
        );
        let bytes = writer.bytes();
        assert_eq!(bytes, writer.snapshot_bytes());
        writer.append(&some_edit(0)).unwrap();
        assert_eq!(
            fs.take_trace(),
            format!("write manifest-000004 at {bytes}\nsync manifest-000004\n")
        );
        assert_eq!(writer.bytes(), fs.get("manifest-000004").unwrap().len() as u64);
    }

    #[test]
    fn nothing_is_appended_after_a_failed_append() {
        for failing in [0, 1] {
            let fs = TracingFs::default();
            let state = populated();
            let mut writer =
                ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &state).unwrap();
            let bytes = writer.bytes();
            fs.fail_at(Some(failing));
            let error = writer.append(&some_edit(0)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Io(_)), "{error}");
            fs.fail_at(None);
            fs.take_trace();
            for _ in 0..2 {
                let error = writer.append(&some_edit(0)).unwrap_err();
                let cause = DegradedCause::Manifest;
                assert_eq!(error.kind(), &ErrorKind::Degraded { cause });
            }
            assert_eq!(fs.take_trace(), "", "not a call");
            assert_eq!(writer.bytes(), bytes);
        }
    }

    #[test]
    fn a_failed_creation_is_an_error_at_every_call() {
        for failing in 0..10 {
            let fs = TracingFs::default();
            fs.fail_at(Some(failing));
            let result = ManifestWriter::create(&fs.shared(), dir(), FileNumber(4), &populated());
            assert_eq!(result.is_err(), failing < 9, "call {failing}");
        }
    }
}
