//! A file system in memory with just what tables need, for their tests.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::fs::{File, Fs, Lock, LogRegion};

/// Files by path. Ids count up from 1.
#[derive(Debug, Default)]
pub(crate) struct MemoryFs {
    files: Mutex<HashMap<PathBuf, Arc<MemoryFile>>>,
    ids: AtomicU64,
}

#[derive(Debug, Default)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryFs {
    /// The bytes of a file.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        self.files.lock()[path].bytes.lock().clone()
    }

    /// Makes a file of these bytes.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let file = MemoryFile { bytes: Mutex::new(bytes) };
        self.files.lock().insert(path.to_path_buf(), Arc::new(file));
    }
}

impl Fs for MemoryFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = Arc::new(MemoryFile::default());
        match self.files.lock().entry(path.to_path_buf()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Arc::clone(&file));
                Ok(file)
            }
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        match self.files.lock().get(path) {
            Some(file) => Ok(Arc::clone(file) as Arc<dyn File>),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_log(&self, _: &Path, _: u64) -> io::Result<Arc<dyn LogRegion>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock();
        Ok(files.keys().map(|path| path.display().to_string()).collect())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Lock>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn boot_id(&self) -> u128 {
        1
    }

    fn random_id(&self) -> u128 {
        u128::from(self.ids.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl File for MemoryFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        let (start, end) = (offset as usize, offset as usize + data.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.bytes.lock().resize(bytes as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let range = offset as usize..(offset as usize).saturating_add(buf.len());
        buf.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn map(&self) -> io::Result<Bytes> {
        Ok(Bytes::from(self.bytes.lock().clone()))
    }
}
