//! What a server still owes for the messages it was sent, and in which state its transaction is.
//!
//! Pure: messages go in by their kind, answers by their type; out comes whether an answer is the client's. Whoever relays
//! knows from it when a server can be given to somebody else. It knows no text of a statement, and no names.

use std::collections::VecDeque;

/// More is not sent before something is answered. A server holds answers back until 8 KiB are full, and none is shorter
/// than five bytes: with more than 1,640 of them owed it always has something to say.
pub(crate) const OWED_MAX: usize = 8_192;

/// One message that is answered, or that ends something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owed {
    Query,
    Call,
    /// `statement`: what must be forgotten where it does not come to be. `serial`: which of the client's it was; 0: ours.
    Parse {
        statement: u64,
        serial: u64,
    },
    Bind,
    /// Of a statement or a portal.
    Describe,
    Execute,
    Close {
        ours: bool,
    },
    Sync,
    /// CopyDone or CopyFail: nothing is owed for it, but it ends the time in which a server ignores Sync.
    CopyEnd,
}

/// Where the server's transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Idle,
    InTransaction,
    Failed,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Pass,
    /// The router asked for it.
    Ours,
    /// It was passed, and nothing more is owed to that Sync or Query.
    Ready(Status),
}

/// The server said something that nothing was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an answer of type {0:?} that nobody asked for")]
pub(crate) struct Unasked(pub(crate) char);

/// What is owed.
#[derive(Debug)]
pub(crate) struct Pipeline {
    owed: VecDeque<Owed>,
    status: Status,
    /// An error came, and the Sync that ends it is not sent yet: the server ignores everything before it.
    skipping: bool,
    /// The server takes COPY data within an Execute, and ignores Sync until its end.
    copying: bool,
    /// An error came since the last ReadyForQuery.
    failed: bool,
    /// How many Sync, Query and FunctionCall are among `owed`.
    boundaries: usize,
    /// Statements whose Parse did not succeed.
    lost: Vec<Lost>,
}

/// A statement that did not come to be: the text's number and, if it was the client's wish, that wish's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) statement: u64,
    pub(crate) serial: u64,
}

impl Default for Pipeline {
    fn default() -> Pipeline {
        Pipeline {
            owed: VecDeque::new(),
            status: Status::Idle,
            skipping: false,
            copying: false,
            failed: false,
            boundaries: 0,
            lost: Vec::new(),
        }
    }
}

impl Pipeline {
    /// Whether nothing is owed and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.owed.is_empty() && self.status == Status::Idle && !self.skipping
    }

    /// Of a server on which a transaction was opened on the session's behalf.
    pub(crate) fn in_transaction() -> Pipeline {
        Pipeline { status: Status::InTransaction, ..Pipeline::default() }
    }

    /// Of a server on which a transaction was opened on the session's behalf, and has failed.
    pub(crate) fn in_failed_transaction() -> Pipeline {
        Pipeline { status: Status::Failed, ..Pipeline::default() }
    }

    /// Whether a transaction is open, as far as was answered.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.status != Status::Idle
    }

    /// Whether the open transaction has failed, as far as was answered.
    pub(crate) fn is_in_failed_transaction(&self) -> bool {
        self.status == Status::Failed
    }

    /// The statements whose Parse is not answered yet.
    pub(crate) fn owed_statements(&self) -> impl Iterator<Item = u64> + '_ {
        self.owed.iter().filter_map(|owed| match owed {
            Owed::Parse { statement, .. } => Some(*statement),
            _ => None,
        })
    }

    /// Whether so much is owed that nothing more may be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.owed.len() >= OWED_MAX
    }

    /// Whether a Sync, Query or FunctionCall waits for its ReadyForQuery.
    pub(crate) fn awaits_ready(&self) -> bool {
        self.boundaries > 0
    }

    /// Whether everything that was sent is answered.
    pub(crate) fn owes_nothing(&self) -> bool {
        self.owed.is_empty()
    }

    /// How many ReadyForQuery are owed.
    pub(crate) fn boundaries(&self) -> usize {
        self.boundaries
    }

    /// Whether what is sent from here on belongs to an unfinished group: something was sent since the last boundary.
    pub(crate) fn in_group(&self) -> bool {
        self.skipping || self.copying || !self.owed.back().is_none_or(|last| is_boundary(*last))
    }

    /// Whether an error came since the last ReadyForQuery.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Statements whose Parse did not succeed since this was last asked.
    pub(crate) fn take_lost(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.lost)
    }

    /// A message was sent.
    pub(crate) fn sent(&mut self, message: Owed) {
        if self.skipping {
            match message {
                Owed::Sync => self.skipping = false,
                Owed::Parse { statement, serial } => return self.lost.push(Lost { statement, serial }),
                _ => return,
            }
        }
        if message == Owed::CopyEnd && self.owed.is_empty() && !self.copying {
            // The COPY it belongs to has failed; the server ignores it.
            return;
        }
        if self.copying {
            match message {
                Owed::CopyEnd => self.copying = false,
                Owed::Sync => return,
                _ => {}
            }
        }
        self.boundaries += usize::from(is_boundary(message));
        self.owed.push_back(message);
    }

    /// What holds after every message and answer.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn check(&self) {
        assert_eq!(self.boundaries, self.owed.iter().filter(|owed| is_boundary(**owed)).count());
        assert!(self.owed.len() <= OWED_MAX);
        assert!(!self.skipping || self.owed.is_empty(), "what is skipped is not owed");
    }

    /// An answer came: its type, and the first byte of its body.
    pub(crate) fn received(&mut self, tag: u8, first: u8) -> Result<Answer, Unasked> {
        // Notices, notifications and changed settings come at any time.
        if matches!(tag, b'N' | b'A' | b'S') {
            return Ok(Answer::Pass);
        }
        while let Some(Owed::CopyEnd) = self.owed.front() {
            self.owed.pop_front();
        }
        let unasked = Unasked(tag as char);
        let Some(&head) = self.owed.front() else { return Err(unasked) };
        let in_query = matches!(head, Owed::Query | Owed::Call);
        match tag {
            b'Z' => return self.ready(first).ok_or(unasked),
            b'E' => self.error(),
            b'D' | b'd' | b'c' | b'H' | b'W' if in_query || head == Owed::Execute => {}
            b'G' if in_query => {}
            b'G' if head == Owed::Execute => self.copy_in(),
            b'T' | b'C' | b'I' | b'V' if in_query => {}
            b'C' | b'I' | b's' if head == Owed::Execute => self.pop(),
            b't' if head == Owed::Describe => {}
            b'T' | b'n' if head == Owed::Describe => self.pop(),
            b'2' if head == Owed::Bind => self.pop(),
            b'1' if matches!(head, Owed::Parse { .. }) => self.pop(),
            b'3' if matches!(head, Owed::Close { .. }) => self.pop(),
            _ => return Err(unasked),
        }
        let ours = matches!(head, Owed::Parse { serial: 0, .. } | Owed::Close { ours: true });
        Ok(if ours && tag != b'E' { Answer::Ours } else { Answer::Pass })
    }

    fn pop(&mut self) {
        self.owed.pop_front();
    }

    fn ready(&mut self, status: u8) -> Option<Answer> {
        self.status = match status {
            b'I' => Status::Idle,
            b'T' => Status::InTransaction,
            b'E' => Status::Failed,
            _ => return None,
        };
        match self.owed.pop_front() {
            Some(Owed::Sync | Owed::Query | Owed::Call) => {}
            _ => return None,
        }
        self.boundaries -= 1;
        self.failed = false;
        while let Some(Owed::CopyEnd) = self.owed.front() {
            self.owed.pop_front();
        }
        Some(Answer::Ready(self.status))
    }

    /// After an error within the extended protocol, everything up to the next Sync is ignored.
    fn error(&mut self) {
        self.failed = true;
        self.copying = false;
        if matches!(self.owed.front(), Some(Owed::Query | Owed::Call | Owed::Sync)) {
            return;
        }
        loop {
            match self.owed.front() {
                Some(Owed::Sync) => return,
                None => {
                    self.skipping = true;
                    return;
                }
                Some(&Owed::Parse { statement, serial }) => self.lost.push(Lost { statement, serial }),
                // A Query behind an unfinished group is ignored as everything else is.
                Some(Owed::Query | Owed::Call) => self.boundaries -= 1,
                Some(_) => {}
            }
            self.owed.pop_front();
        }
    }

    /// The server takes data for an Execute: Syncs that came before the data are ignored, for clients that send them
    /// without knowing that their statement was a COPY.
    fn copy_in(&mut self) {
        let end = self.owed.iter().position(|owed| *owed == Owed::CopyEnd);
        self.copying = end.is_none();
        let mut index = 0;
        let boundaries = &mut self.boundaries;
        self.owed.retain(|owed| {
            let ignored = *owed == Owed::Sync && end.is_none_or(|end| index < end);
            *boundaries -= usize::from(ignored);
            index += 1;
            !ignored
        });
    }
}

fn is_boundary(owed: Owed) -> bool {
    matches!(owed, Owed::Sync | Owed::Query | Owed::Call)
}

#[cfg(test)]
mod tests;
