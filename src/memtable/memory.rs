//! Owned pieces of raw memory, from the allocator or from the kernel.
//!
//! Large pieces come from the kernel, and go back to it: glibc keeps what was freed, up to 64 MiB in each of
//! its arenas, once it has seen that large pieces come and go (with values of megabytes 150 MiB of 64 MiB).

#![expect(unsafe_code, reason = "it is raw memory, for those who lay things out in it themselves")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use memmap2::MmapMut;

/// Pieces start at a cache line at least.
const ALIGN: usize = 64;
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Pieces of this size and above come from the kernel.
const MAPPED_BYTES_MIN: usize = 128 << 10;

/// An owned piece of raw memory.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    /// Where it came from the kernel; else it came from the allocator.
    mapping: Option<MmapMut>,
}

// SAFETY: Memory owns what it points to, and gives no access to it itself.
unsafe impl Send for Memory {}

impl Memory {
    pub fn new(bytes: usize) -> Memory {
        assert!(bytes > 0);
        let layout = Layout::from_size_align(bytes, ALIGN);
        let layout = layout.expect("the size fits an isize");
        if bytes >= MAPPED_BYTES_MIN
            && let Ok(mut mapping) = MmapMut::map_anon(bytes)
        {
            advise_huge_pages(&mapping);
            make_present(&mapping);
            let start = NonNull::new(mapping.as_mut_ptr()).expect("a mapping is not at 0");
            return Memory { start, layout, mapping: Some(mapping) };
        }
        // SAFETY: the layout's size is not 0, asserted above.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Memory { start, layout, mapping: None }
    }

    #[inline]
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }

    #[inline]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

/// Entries are read in key order and written in time order, so nearly every access of a large
/// memtable misses the TLB too unless the pages are huge. Only advice: errors do not matter.
fn advise_huge_pages(mapping: &MmapMut) {
    #[cfg(target_os = "linux")]
    if mapping.len() >= HUGE_PAGE_BYTES {
        let _ = mapping.advise(memmap2::Advice::HugePage);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = mapping;
}

/// All of it is written soon, and 256 page faults cost more than the pages: of a put of 64 KiB two thirds.
/// Kernels before 5.14 refuse; then stores fault, as they did.
fn make_present(mapping: &MmapMut) {
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::PopulateWrite);
    #[cfg(not(target_os = "linux"))]
    let _ = mapping;
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.mapping.is_none() {
            // SAFETY: `start` came from `alloc` with this layout, and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// Words that threads share.
#[derive(Debug)]
pub(crate) struct Words(Memory);

// SAFETY: all there is to share are atomic words.
unsafe impl Sync for Words {}

impl Words {
    /// So many zeros.
    pub fn new(count: usize) -> Words {
        let mut words = Words(Memory::new(count * size_of::<u64>()));
        words.clear();
        words
    }

    pub fn clear(&mut self) {
        // SAFETY: all of the memory, which nobody else uses.
        unsafe { self.0.start().write_bytes(0, self.0.bytes()) };
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        let words = self.0.start().cast::<AtomicU64>();
        // SAFETY: memory is aligned to cache lines, it was written as a whole, and it is only used as
        // these words.
        unsafe { slice::from_raw_parts(words.as_ptr(), self.0.bytes() / size_of::<u64>()) }
    }
}
