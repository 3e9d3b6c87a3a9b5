//! The bytes of a simulated file, in shared chunks: a copy costs one reference count a chunk, and
//! a store after a copy duplicates only the chunk it falls into.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

const CHUNK_BYTES: usize = 4096;
type Chunk = [u8; CHUNK_BYTES];

/// A file's bytes. What was never written reads as zeros.
#[derive(Clone, Default)]
pub(super) struct Contents {
    len: u64,
    /// `None`, and everything beyond the last one, is zeros.
    chunks: Vec<Option<Arc<Chunk>>>,
}

impl Contents {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes, growing the file as needed.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.put(offset, data);
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Puts bytes where they belong without growing the file: those beyond its end are read only
    /// if [`Contents::set_len`] grows it before it cuts them off.
    pub(super) fn put(&mut self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).expect("the simulated disk fits into memory");
        let mut rest = data;
        while !rest.is_empty() {
            let (index, begin) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
            let (now, later) = rest.split_at(rest.len().min(CHUNK_BYTES - begin));
            if index >= self.chunks.len() {
                self.chunks.resize(index + 1, None);
            }
            let chunk = self.chunks[index].get_or_insert_with(|| Arc::new([0; CHUNK_BYTES]));
            Arc::make_mut(chunk)[begin..begin + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len(), later);
        }
    }

    /// Sets the length, revealing what [`Contents::put`] put within it, and forgets the rest.
    pub(super) fn set_len(&mut self, bytes: u64) {
        let end = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.chunks.truncate(end.div_ceil(CHUNK_BYTES));
        if let Some(Some(chunk)) = self.chunks.get_mut(end / CHUNK_BYTES) {
            Arc::make_mut(chunk)[end % CHUNK_BYTES..].fill(0);
        }
        self.len = bytes;
    }

    /// Fills `buf` from `offset`, which with its length must lie within the file.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        assert!(offset + buf.len() as u64 <= self.len, "a read within the file");
        let mut at = offset as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let (index, begin) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
            let count = rest.len().min(CHUNK_BYTES - begin);
            let (now, later) = rest.split_at_mut(count);
            match self.chunks.get(index) {
                Some(Some(chunk)) => now.copy_from_slice(&chunk[begin..begin + count]),
                _ => now.fill(0),
            }
            (at, rest) = (at + count, later);
        }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.len).expect("fits into memory")];
        self.read(&mut all, 0);
        all
    }

    /// Equal contents hash alike, whether their zeros were written or not.
    pub(super) fn hash(&self, hasher: &mut Xxh3) {
        hasher.update(&self.len.to_le_bytes());
        for (index, chunk) in self.chunks.iter().enumerate() {
            if let Some(chunk) = chunk
                && **chunk != [0; CHUNK_BYTES]
            {
                hasher.update(&index.to_le_bytes());
                hasher.update(&chunk[..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_vector() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut contents, mut model) = (Contents::default(), Vec::new());
        let mut copies = Vec::new();
        for step in 0..2_000 {
            let (offset, count) = (random.usize(0..20_000), random.usize(0..6_000));
            if random.u8(..) < 200 {
                let data: Vec<u8> = (0..count).map(|_| random.u8(..)).collect();
                contents.write(offset as u64, &data);
                if model.len() < offset + count {
                    model.resize(offset + count, 0);
                }
                model[offset..offset + count].copy_from_slice(&data);
            } else {
                contents.set_len(offset as u64);
                model.resize(offset, 0);
            }
            assert_eq!(contents.to_vec(), model, "step {step}");
            if step % 100 == 0 {
                copies.push((contents.clone(), model.clone()));
            }
        }
        for (contents, model) in copies {
            assert_eq!(contents.to_vec(), model, "a copy stays what it was");
        }
    }

    #[test]
    fn hashes_see_bytes_and_length_only() {
        let hash = |contents: &Contents| {
            let mut hasher = Xxh3::new();
            contents.hash(&mut hasher);
            hasher.digest()
        };
        let (mut written, mut sparse) = (Contents::default(), Contents::default());
        written.write(0, &[0; 5000]);
        sparse.set_len(5000);
        assert_eq!(hash(&written), hash(&sparse));
        written.write(4999, &[1]);
        assert_ne!(hash(&written), hash(&sparse));
        sparse.write(4999, &[1]);
        assert_eq!(hash(&written), hash(&sparse));
        sparse.set_len(5001);
        assert_ne!(hash(&written), hash(&sparse));
    }
}
