//! Faults of the hand-over of reads and writes.

use super::{Known, ambiguous, known, retry};

/// In the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    known("SEGUE-BUSY", "another order of that kind is being judged", "ask again in a moment"),
    retry(
        "SEGUE-CLOSE-REFUSED",
        "the old side could not be closed for good",
        "it is tried again; its fence stands meanwhile, and nothing is written there",
    ),
    known(
        "SEGUE-CLOSED",
        "the run ended in the middle of a hand-over that could be neither undone nor finished: neither side may take the writes",
        "`segue run` at once, on any machine: it does",
    ),
    ambiguous("SEGUE-FENCE-UNKNOWN", "the answer to a step of the fence was lost: it may have been done"),
    retry(
        "SEGUE-FLIP-STANDBY",
        "the hand-over is not on the old owner's synchronous standbys yet, so the new owner is not opened",
        "it is tried again; see why those standbys lag: nobody can write meanwhile",
    ),
    known(
        "SEGUE-GIVEN-UP",
        "the order was given up while the way back was made; making it goes on",
        "`segue resume`, then ask again",
    ),
    retry(
        "SEGUE-NO-OWNER",
        "it cannot be seen who owns the writes, because a side is silent",
        "it is looked at again with new sessions; see that both servers can be reached",
    ),
    known(
        "SEGUE-NOT-FENCED",
        "writes to a table cannot be shut out: it has no fence, or cannot carry one",
        "ask again; or take what the message names out of the spec",
    ),
    retry(
        "SEGUE-OPEN-REFUSED",
        "the new side did not let itself be opened for writes",
        "it is tried again; nobody can write meanwhile",
    ),
    known(
        "SEGUE-OVERRIDE",
        "a gate that was to be overridden cannot be, or no reason was given",
        "ask again without it, and mend what the gate measures",
    ),
    known(
        "SEGUE-OWNERSHIP",
        "the two rows of ownership contradict each other: one was changed by hand, or a side was restored",
        "find out which side has the newest writes before anything else",
    ),
    known(
        "SEGUE-SEQUENCE-CHANGED",
        "a sequence was altered after the switch was prepared",
        "switch again: the sequences are looked at anew",
    ),
    ambiguous("SEGUE-SEQUENCES-UNKNOWN", "the answer was lost when sequences were set: they may have been"),
    retry(
        "SEGUE-SWITCH-OVER",
        "the attempt, or a stream, ended while an order was carried out",
        "Segue begins anew; `segue status` says what became of the order",
    ),
];
