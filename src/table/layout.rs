//! Where the sections of a table are: the directory and the footer. Drawn in the parent's comment.

use std::ops::Range;
use std::path::Path;

use crate::checksum::Checksum;
use crate::coding::{DecodeError, Decoded, Decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::file::HEADER_BYTES;
use crate::fs;

/// The file's last bytes. On disk: never change.
const FOOTER_MAGIC: &[u8; 8] = b"eskerEND";
/// Bytes of the footer.
pub(crate) const FOOTER_BYTES: usize = 32;
const FOOTER_CHECKED: usize = 20;
const ENTRY_BYTES: usize = 28;
/// A directory longer than this is damage: the format has had five kinds of sections so far.
const DIRECTORY_BYTES_MAX: u32 = 64 << 10;

/// Section flag: a reader that does not know the kind ignores the section. On disk.
pub(crate) const FLAG_OPTIONAL: u32 = 1;

/// What a section holds. On disk: never renumber.
pub(crate) mod section_kind {
    /// The data blocks, one after the other, each with its own checksum.
    pub const DATA: u32 = 1;
    /// One block that says where each data block ends.
    pub const INDEX: u32 = 2;
    /// The facts of the table.
    pub const PROPERTIES: u32 = 3;
    /// The filter.
    pub const FILTER: u32 = 4;
    /// Where the table belongs.
    pub const ORIGIN: u32 = 5;
}

/// One line of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub bytes: u64,
    /// Of all its bytes, bound to its offset; 0 for the data section.
    pub checksum: u32,
}

impl Section {
    /// The bytes of the file that it takes.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }

    /// The section's name for people.
    pub fn name(&self) -> &'static str {
        match self.kind {
            section_kind::DATA => "data",
            section_kind::INDEX => "index",
            section_kind::PROPERTIES => "properties",
            section_kind::FILTER => "filter",
            section_kind::ORIGIN => "origin",
            _ => "unknown",
        }
    }
}

/// All sections of a table, in the order of their offsets, without gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub sections: Vec<Section>,
}

impl Layout {
    /// The section of this kind.
    pub fn find(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    /// The section of a kind that every table has: [`Layout::decode_directory`] has checked it.
    pub fn required(&self, kind: u32) -> &Section {
        self.find(kind).expect("checked when the directory was decoded")
    }

    /// Appends directory and footer, which begin at `offset` of the file.
    pub fn encode(&self, offset: u64, checksum: Checksum, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        for section in &self.sections {
            out.extend_from_slice(&section.kind.to_le_bytes());
            out.extend_from_slice(&section.flags.to_le_bytes());
            out.extend_from_slice(&section.offset.to_le_bytes());
            out.extend_from_slice(&section.bytes.to_le_bytes());
            out.extend_from_slice(&section.checksum.to_le_bytes());
        }
        let directory_bytes = out.len() - start;
        let directory_checksum = checksum.of(offset, &out[start..]);
        let footer = out.len();
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&(directory_bytes as u32).to_le_bytes());
        out.extend_from_slice(&directory_checksum.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        let footer_offset = offset + directory_bytes as u64;
        let footer_checksum = checksum.of(footer_offset, &out[footer..]);
        out.extend_from_slice(&footer_checksum.to_le_bytes());
        out.extend_from_slice(FOOTER_MAGIC);
    }

    /// Reads the layout of a file of `file_bytes` bytes; `read` gives any range of it.
    pub fn read<B: AsRef<[u8]>>(
        path: &Path,
        file_bytes: u64,
        checksum: Checksum,
        read: impl Fn(Range<u64>) -> Result<B>,
    ) -> Result<Layout> {
        let least = (HEADER_BYTES + FOOTER_BYTES) as u64;
        if !fs::length_fits("table.bytes.least", file_bytes >= least) {
            let expected = format!("at least {least} bytes");
            return Err(Error::corruption(path, file_bytes, expected, format!("{file_bytes}")));
        }
        let footer_offset = file_bytes - FOOTER_BYTES as u64;
        let footer = read(footer_offset..file_bytes)?;
        let (directory, directory_checksum) =
            decode_footer(footer.as_ref(), footer_offset, checksum)
                .map_err(|e| Error::corruption(path, footer_offset, "a table's footer", e.0))?;
        let bytes = read(directory.clone())?;
        let found = checksum.of(directory.start, bytes.as_ref());
        if found != directory_checksum {
            let expected = format!("directory checksum {directory_checksum:08x}");
            return Err(Error::corruption(path, directory.start, expected, format!("{found:08x}")));
        }
        let layout = Layout::decode_directory(bytes.as_ref(), directory.start)
            .map_err(|e| Error::corruption(path, directory.start, "a table's directory", e.0))?;
        for section in &layout.sections {
            if section.name() == "unknown" && section.flags & FLAG_OPTIONAL == 0 {
                let what = format!("{}: section of kind {}", path.display(), section.kind);
                return Err(Error::new(ErrorKind::Unsupported).context(what));
            }
        }
        Ok(layout)
    }

    /// Decodes the directory, which begins at `offset` of the file and ends the sections.
    fn decode_directory(bytes: &[u8], offset: u64) -> Decoded<Layout> {
        let mut decoder = Decoder::new(bytes);
        let count = decoder.u32()? as usize;
        if decoder.rest().len() != count.saturating_mul(ENTRY_BYTES) {
            return Err(DecodeError("its length does not match its count"));
        }
        let mut sections: Vec<Section> = Vec::with_capacity(count);
        let mut end = HEADER_BYTES as u64;
        for _ in 0..count {
            let section = Section {
                kind: decoder.u32()?,
                flags: decoder.u32()?,
                offset: decoder.u64()?,
                bytes: decoder.u64()?,
                checksum: decoder.u32()?,
            };
            if section.offset != end {
                return Err(DecodeError("a gap between sections"));
            }
            if section.flags & !FLAG_OPTIONAL != 0 {
                return Err(DecodeError("unknown section flags"));
            }
            if sections.iter().any(|other| other.kind == section.kind) {
                return Err(DecodeError("two sections of one kind"));
            }
            end = end.checked_add(section.bytes).ok_or(DecodeError("a section past the end"))?;
            sections.push(section);
        }
        if end != offset {
            return Err(DecodeError("sections that do not end at the directory"));
        }
        let layout = Layout { sections };
        use section_kind::{DATA, INDEX, PROPERTIES};
        if [DATA, INDEX, PROPERTIES].iter().any(|&kind| layout.find(kind).is_none()) {
            return Err(DecodeError("a required section is missing"));
        }
        if layout.required(DATA).checksum != 0 {
            return Err(DecodeError("a checksum of the data section"));
        }
        Ok(layout)
    }
}

/// The range of the directory, and its checksum.
fn decode_footer(bytes: &[u8], offset: u64, checksum: Checksum) -> Decoded<(Range<u64>, u32)> {
    let mut footer = Decoder::new(bytes);
    let directory_offset = footer.u64()?;
    let directory_bytes = footer.u32()?;
    let directory_checksum = footer.u32()?;
    let zero = footer.u32()?;
    let footer_checksum = footer.u32()?;
    if footer.rest() != FOOTER_MAGIC {
        return Err(DecodeError("another magic"));
    }
    if footer_checksum != checksum.of(offset, &bytes[..FOOTER_CHECKED]) {
        return Err(DecodeError("another checksum"));
    }
    if zero != 0 {
        return Err(DecodeError("a reserved field that is not zero"));
    }
    if directory_bytes > DIRECTORY_BYTES_MAX
        || directory_offset < HEADER_BYTES as u64
        || directory_offset.checked_add(u64::from(directory_bytes)) != Some(offset)
    {
        return Err(DecodeError("a directory that does not end at the footer"));
    }
    Ok((directory_offset..offset, directory_checksum))
}
