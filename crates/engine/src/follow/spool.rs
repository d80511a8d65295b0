//! A list of changes that moves to disk when it outgrows memory.
//!
//! Written once, read any number of times, in pieces of bounded size. The file is deleted with the list. The
//! byte form is private to one process: a restart begins again from the source's log.

use crate::fault::Fault;
use crate::ports::Outcome;
use bytes::{Buf, Bytes};
use segue_model::change::{Action, Change, Leaf, Row, Value};
use segue_model::region::Emptied;
use segue_model::table::{TableId, UnitId};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

/// Changes in memory are moved to disk in pieces of this size, and read back so.
const PIECE_BYTES: usize = 4 << 20;
/// Values smaller than this are gathered before they are written; larger ones are not copied in memory once more.
const GATHER_BYTES: usize = 256 << 10;

/// Changes in commit order, in memory up to a limit.
#[derive(Debug)]
pub struct Changes {
    memory: Vec<Change>,
    memory_bytes: usize,
    memory_bytes_max: usize,
    count: u64,
    disk: Option<Disk>,
}

#[derive(Debug)]
struct Disk {
    file: File,
    /// Length of each piece.
    pieces: Vec<usize>,
}

impl Changes {
    /// An empty list that holds at most about `memory_bytes_max` in memory.
    pub fn new(memory_bytes_max: usize) -> Changes {
        Changes { memory: Vec::new(), memory_bytes: 0, memory_bytes_max, count: 0, disk: None }
    }

    /// Appends a change.
    pub fn push(&mut self, change: Change) -> Outcome<()> {
        self.memory_bytes += change.len_bytes();
        self.count += 1;
        self.memory.push(change);
        let limit = if self.disk.is_some() { PIECE_BYTES } else { self.memory_bytes_max };
        if self.memory_bytes > limit { self.spill().map_err(|e| disk_fault(&e)) } else { Ok(()) }
    }

    fn spill(&mut self) -> std::io::Result<()> {
        let disk = match &mut self.disk {
            Some(disk) => disk,
            none => none.insert(Disk { file: tempfile::tempfile()?, pieces: Vec::new() }),
        };
        let Disk { file, pieces } = disk;
        let mut out = Counted { to: BufWriter::with_capacity(GATHER_BYTES, file), bytes: 0 };
        for change in self.memory.drain(..) {
            encode(&change, &mut out)?;
            if out.bytes >= PIECE_BYTES {
                pieces.push(std::mem::take(&mut out.bytes));
            }
        }
        if out.bytes > 0 {
            pieces.push(out.bytes);
        }
        out.flush()?;
        self.memory_bytes = 0;
        Ok(())
    }

    /// Number of changes.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether part of it is on disk.
    pub fn is_spilled(&self) -> bool {
        self.disk.is_some()
    }

    /// The changes, if they are all in memory.
    pub fn into_memory(self) -> Result<Vec<Change>, Changes> {
        if self.disk.is_some() { Err(self) } else { Ok(self.memory) }
    }

    /// Bytes held in memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Number of pieces for [`Changes::piece`].
    pub fn pieces(&self) -> usize {
        self.disk.as_ref().map_or(0, |d| d.pieces.len()) + usize::from(!self.memory.is_empty())
    }

    /// Reads piece number `index`; pieces are in commit order, those in memory come last. A fault if there is none.
    pub fn piece(&self, index: usize) -> Outcome<Vec<Change>> {
        let on_disk = self.disk.as_ref().map_or(&[][..], |disk| &disk.pieces);
        let (Some(disk), Some(&len)) = (&self.disk, on_disk.get(index)) else {
            if index >= self.pieces() {
                return Err(Fault::bug("SEGUE-SPOOL", format!("a transaction has no piece number {index}")));
            }
            return Ok(self.memory.clone());
        };
        let offset: usize = on_disk[..index].iter().sum();
        let read = || {
            let mut piece = vec![0; len];
            disk.file.read_exact_at(&mut piece, offset as u64)?;
            Ok(piece)
        };
        let mut piece = Bytes::from(read().map_err(|e: std::io::Error| disk_fault(&e))?);
        let mut changes = Vec::new();
        while piece.has_remaining() {
            let change = decode(&mut piece)
                .ok_or_else(|| Fault::bug("SEGUE-SPOOL", "a spilled transaction cannot be read back"))?;
            changes.push(change);
        }
        Ok(changes)
    }
}

fn disk_fault(error: &std::io::Error) -> Fault {
    Fault::operator(
        "SEGUE-SPOOL-DISK",
        format!("a large transaction could not be spilled to {}: {error}", std::env::temp_dir().display()),
        "make room there, or point TMPDIR at a larger disk, and start again; nothing is lost",
    )
}

/// Counts what is written.
struct Counted<W> {
    to: W,
    bytes: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

fn encode(change: &Change, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(&change.table.0.to_be_bytes())?;
    out.write_all(&change.unit.0.to_be_bytes())?;
    match &change.action {
        Action::Insert { new } => {
            out.write_all(b"I")?;
            encode_row(new, out)
        }
        Action::Update { old: None, new } => {
            out.write_all(b"U")?;
            encode_row(new, out)
        }
        Action::Update { old: Some(old), new } => {
            out.write_all(b"K")?;
            encode_row(old, out)?;
            encode_row(new, out)
        }
        Action::Delete { old } => {
            out.write_all(b"D")?;
            encode_row(old, out)
        }
        Action::Truncate { leaf, within } => {
            out.write_all(b"T")?;
            let leaf = leaf.as_ref().map(|l| (&l.name, &l.condition));
            encode_bytes(&serde_json::to_vec(&(leaf, within))?, out)
        }
    }
}

fn encode_row(row: &Row, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(&(row.len() as u32).to_be_bytes())?;
    row.iter().try_for_each(|value| match value {
        Value::Null => out.write_all(&[0]),
        Value::Unchanged => out.write_all(&[1]),
        Value::Text(text) => {
            out.write_all(&[2])?;
            encode_bytes(text, out)
        }
    })
}

fn encode_bytes(bytes: &[u8], out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(&(bytes.len() as u32).to_be_bytes())?;
    out.write_all(bytes)
}

fn decode(from: &mut Bytes) -> Option<Change> {
    let table = TableId(from.try_get_u32().ok()?);
    let unit = UnitId(from.try_get_u32().ok()?);
    let action = match from.try_get_u8().ok()? {
        b'I' => Action::Insert { new: decode_row(from)? },
        b'U' => Action::Update { old: None, new: decode_row(from)? },
        b'K' => Action::Update { old: Some(decode_row(from)?), new: decode_row(from)? },
        b'D' => Action::Delete { old: decode_row(from)? },
        b'T' => {
            type Parts = (Option<(String, String)>, Option<Vec<Emptied>>);
            let (leaf, within): Parts = serde_json::from_slice(&decode_bytes(from)?).ok()?;
            Action::Truncate { leaf: leaf.map(|(name, condition)| Leaf { name, condition }), within }
        }
        _ => return None,
    };
    Some(Change { table, unit, action })
}

fn decode_row(from: &mut Bytes) -> Option<Row> {
    let len = from.try_get_u32().ok()?;
    let value = |from: &mut Bytes| match from.try_get_u8().ok()? {
        0 => Some(Value::Null),
        1 => Some(Value::Unchanged),
        2 => decode_bytes(from).map(Value::Text),
        _ => None,
    };
    (0..len).map(|_| value(from)).collect()
}

fn decode_bytes(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32().ok()? as usize;
    (len <= from.len()).then(|| from.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::key::KeyText;
    use segue_model::region::Extent;

    #[test]
    fn a_full_disk_is_named_with_the_way_out() {
        let fault = disk_fault(&std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(fault.code, "SEGUE-SPOOL-DISK");
        let here = std::env::temp_dir().display().to_string();
        assert!(fault.what.contains(&here) && fault.next_step.contains("TMPDIR"), "{fault}");
    }

    fn changes() -> Vec<Change> {
        let row = |texts: &[Option<&'static str>]| -> Row {
            texts
                .iter()
                .map(|t| t.map_or(Value::Unchanged, |t| Value::Text(Bytes::from_static(t.as_bytes()))))
                .collect()
        };
        let null_row: Row = vec![Value::Null, Value::Text(Bytes::new())].into();
        let within = Some(vec![(
            Extent::Range { lower: None, upper: Some(KeyText::from_texts(["9"])) },
            vec![KeyText::from_texts(["7"])],
        )]);
        let leaf = Some(Leaf { name: "p1".into(), condition: "a > 'ü'".into() });
        [
            Action::Insert { new: row(&[Some("1"), Some("a")]) },
            Action::Update { old: None, new: row(&[Some("1"), None]) },
            Action::Update { old: Some(null_row.clone()), new: row(&[Some("2"), None]) },
            Action::Delete { old: null_row },
            Action::Truncate { leaf: None, within: None },
            Action::Truncate { leaf, within },
        ]
        .into_iter()
        .map(|action| Change { table: TableId(3), unit: UnitId(9), action })
        .collect()
    }

    #[test]
    fn every_change_comes_back_from_disk_as_it_was_in_order() {
        let mut spool = Changes::new(1);
        for c in changes() {
            spool.push(c).unwrap();
        }
        assert!(spool.is_spilled());
        for _ in 0..2 {
            let back: Vec<Change> = (0..spool.pieces()).flat_map(|i| spool.piece(i).unwrap()).collect();
            assert_eq!(back, changes());
        }
    }

    #[test]
    fn a_small_list_stays_in_memory() {
        let mut spool = Changes::new(1 << 20);
        for c in changes() {
            spool.push(c).unwrap();
        }
        assert_eq!(spool.piece(0).unwrap(), changes());
        assert_eq!(spool.into_memory().unwrap(), changes());
    }

    #[test]
    fn a_torn_piece_is_noticed() {
        let mut bytes = Vec::new();
        encode(&changes()[0], &mut bytes).unwrap();
        let mut torn = Bytes::from(bytes);
        torn.truncate(torn.len() - 1);
        assert_eq!(decode(&mut torn), None);
    }
}
