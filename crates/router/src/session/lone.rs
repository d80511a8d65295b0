//! A statement that is its own transaction: kept as long as nothing of its answer was passed on, to be sent again to
//! another owner where the fence refused it.

use crate::frames;
use bytes::BytesMut;
use segue_model::switch::ownership::Epoch;
use std::time::Instant;

/// A group of messages of more bytes is not kept for being sent again.
pub(super) const LONE_BYTES_MAX: usize = 64 * 1024;

/// A statement that is its own transaction, while nothing of its answer was passed on.
#[derive(Default)]
pub(super) struct Lone {
    /// The group as it came.
    pub(super) bytes: BytesMut,
    /// Nothing was sent since the transaction's begin: only what comes first can be alone in it. Where a client flushes
    /// without a Sync nothing is owed, and the transaction goes on.
    pub(super) first: bool,
    /// Whether it is the only thing that was sent, and may be sent again.
    pub(super) armed: bool,
    /// The epoch whose owner refused it, and until when another one is waited for.
    pub(super) refused: Option<(Epoch, Instant)>,
    /// The client's wishes for statements in it: they are made again.
    pub(super) parsed: Vec<u64>,
}

impl Lone {
    /// Something of the answer goes to the client.
    pub(super) fn is_answered(&mut self) {
        self.armed = false;
        self.refused = None;
        if self.bytes.capacity() > 4096 {
            self.bytes = BytesMut::new();
        }
    }

    /// Whether its next refusal is the client's.
    pub(super) fn is_last_try(&self) -> bool {
        self.refused.is_some_and(|(_, until)| Instant::now() >= until)
    }

    /// Keeps a group that is proved to do nothing but read.
    pub(super) fn keep_read(&mut self, group: &[u8]) {
        self.bytes.clear();
        self.parsed.clear();
        self.bytes.extend_from_slice(group);
    }

    /// Keeps the group at the beginning of `input`, if it is a statement of its own and all that there is.
    pub(super) fn keep(&mut self, input: &[u8]) {
        self.bytes.clear();
        self.parsed.clear();
        if !self.is_last_try() && is_lone(input) {
            self.bytes.extend_from_slice(input);
        }
    }
}

/// Whether there is one group with one execution, whole, and nothing behind it.
pub(crate) fn is_lone(input: &[u8]) -> bool {
    if input.len() > LONE_BYTES_MAX {
        return false;
    }
    let (mut rest, mut executions, mut binds) = (input, 0, 0);
    while let Ok(Some(head)) = frames::head(rest) {
        let Some(behind) = rest.get(head.bytes..) else { return false };
        match head.tag {
            b'Q' => return executions == 0 && behind.is_empty() && rest.len() == input.len(),
            b'S' => return executions == 1 && behind.is_empty(),
            b'E' => executions += 1,
            b'B' => binds += 1,
            // Sent again, it would not find what it has closed.
            b'C' if binds > 0 => return false,
            b'P' | b'D' | b'C' => {}
            _ => return false,
        }
        rest = behind;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    #[test]
    fn a_lone_statement_gives_a_large_buffer_up() {
        let mut lone =
            Lone { bytes: BytesMut::with_capacity(LONE_BYTES_MAX), armed: true, ..Lone::default() };
        lone.bytes.put_u8(b'Q');
        lone.is_answered();
        assert!(!lone.armed && lone.bytes.capacity() <= 4096);
    }

    #[test]
    fn only_one_execution_with_nothing_behind_it_is_lone() {
        let group = |tags: &str| -> Vec<u8> { tags.bytes().flat_map(|tag| [tag, 0, 0, 0, 4]).collect() };
        for (tags, lone) in [
            ("Q", true),
            ("PBDES", true),
            ("CPBES", true),
            ("BES", true),
            ("BECS", false),
            ("", false),
            ("QQ", false),
            ("PDS", false),
            ("BEBES", false),
            ("BESQ", false),
            ("BE", false),
            ("PQ", false),
            ("BEHS", false),
        ] {
            assert_eq!(is_lone(&group(tags)), lone, "{tags}");
        }
        assert!(!is_lone(b"Q\0\0\0\x05"));
    }
}
