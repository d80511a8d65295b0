//! Hand-made bytes, an encoder that mirrors the decoder, and arbitrary bytes.

use super::*;
use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_row(out: &mut BytesMut, row: &Row) {
    out.put_u16(row.len() as u16);
    for value in row.iter() {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(text) => {
                out.put_u8(b't');
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
        }
    }
}

fn put_old(out: &mut BytesMut, old: &Old) {
    let (kind, row) = match old {
        Old::Key(row) => (b'K', row),
        Old::Full(row) => (b'O', row),
    };
    out.put_u8(kind);
    put_row(out, row);
}

pub(crate) fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    let time = |t: &i64| t - POSTGRES_EPOCH_US;
    match message {
        Message::Begin { commit_at, committed_at_us, xid } => {
            out.put_u8(b'B');
            out.put_u64(commit_at.0);
            out.put_i64(time(committed_at_us));
            out.put_u32(*xid);
        }
        Message::Commit { commit_at, end, committed_at_us } => {
            out.put_slice(b"C\0");
            out.put_u64(commit_at.0);
            out.put_u64(end.0);
            out.put_i64(time(committed_at_us));
        }
        Message::Origin { position, name } => {
            out.put_u8(b'O');
            out.put_u64(position.0);
            put_text(&mut out, name);
        }
        Message::Relation(relation) => {
            out.put_u8(b'R');
            out.put_u32(relation.oid);
            put_text(&mut out, &relation.schema);
            put_text(&mut out, &relation.name);
            out.put_u8(match relation.identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            out.put_u16(relation.columns.len() as u16);
            for column in &relation.columns {
                out.put_u8(column.in_identity.into());
                put_text(&mut out, &column.name);
                out.put_u32(column.type_oid);
                out.put_i32(column.type_modifier);
            }
        }
        Message::Type { oid, schema, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_text(&mut out, schema);
            put_text(&mut out, name);
        }
        Message::Insert { relation, new } => {
            out.put_u8(b'I');
            out.put_u32(*relation);
            out.put_u8(b'N');
            put_row(&mut out, new);
        }
        Message::Update { relation, old, new } => {
            out.put_u8(b'U');
            out.put_u32(*relation);
            if let Some(old) = old {
                put_old(&mut out, old);
            }
            out.put_u8(b'N');
            put_row(&mut out, new);
        }
        Message::Delete { relation, old } => {
            out.put_u8(b'D');
            out.put_u32(*relation);
            put_old(&mut out, old);
        }
        Message::Truncate { relations, cascade, restart_identity } => {
            out.put_u8(b'T');
            out.put_u32(relations.len() as u32);
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|oid| out.put_u32(*oid));
        }
        Message::Message { transactional, position, prefix, content } => {
            out.put_u8(b'M');
            out.put_u8((*transactional).into());
            out.put_u64(position.0);
            put_text(&mut out, prefix);
            out.put_u32(content.len() as u32);
            out.put_slice(content);
        }
    }
    out.freeze()
}

fn decoded(bytes: &'static [u8]) -> Result<Message, DecodeError> {
    decode(Bytes::from_static(bytes))
}

#[test]
fn begin_and_commit_carry_both_positions_and_unix_time() {
    assert_eq!(
        decoded(b"B\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\x07"),
        Ok(Message::Begin {
            commit_at: Position(0x1_0000_0002),
            committed_at_us: POSTGRES_EPOCH_US + 5,
            xid: 7
        })
    );
    assert_eq!(
        decoded(b"C\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0"),
        Ok(Message::Commit { commit_at: Position(2), end: Position(9), committed_at_us: POSTGRES_EPOCH_US })
    );
}

#[test]
fn an_update_tells_null_unchanged_and_empty_text_apart() {
    let new: Row = [Value::Null, Value::Unchanged, Value::Text(Bytes::new())].into();
    assert_eq!(
        decoded(b"U\0\0\0\x10N\0\x03nut\0\0\0\0"),
        Ok(Message::Update { relation: 16, old: None, new })
    );
}

#[test]
fn values_are_slices_of_the_message() {
    let bytes = Bytes::from(b"I\0\0\0\x10N\0\x01t\0\0\0\x03abc".to_vec());
    let Ok(Message::Insert { new, .. }) = decode(bytes.clone()) else { panic!("an insert") };
    let value = new[0].text().unwrap();
    assert_eq!(value.as_ptr(), bytes[13..].as_ptr());
}

#[test]
fn what_the_protocol_does_not_have_is_an_error_with_its_place() {
    use DecodeError::*;
    let cases: [(&'static [u8], DecodeError); 11] = [
        (b"", Short { field: "message", at: 0 }),
        (b"Z", Unknown { what: "message", kind: b'Z', at: 0 }),
        // a stream block of protocol version 2
        (b"S\0\0\0\x01\x01", Unknown { what: "message", kind: b'S', at: 0 }),
        (b"B\0\0", Short { field: "commit position", at: 3 }),
        (b"C\x01", Flags { field: "commit flags", flags: 1, at: 1 }),
        // a binary value: never asked for
        (b"I\0\0\0\x10N\0\x01b\0\0\0\x01a", Unknown { what: "value", kind: b'b', at: 8 }),
        // an inserted row carries everything, and so does an old one
        (b"I\0\0\0\x10N\0\x01u", Unknown { what: "value", kind: b'u', at: 8 }),
        (b"D\0\0\0\x10K\0\x01u", Unknown { what: "value", kind: b'u', at: 8 }),
        (b"D\0\0\0\x10N\0\x00", Unknown { what: "row", kind: b'N', at: 5 }),
        (b"I\0\0\0\x10N\0\x01t\0\0\0\x09a", Short { field: "value", at: 14 }),
        (b"I\0\0\0\x10N\0\0!", Trailing { count: 1, at: 8 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(decoded(bytes), Err(error), "{bytes:?}");
    }
}

#[test]
fn a_huge_count_in_a_short_message_reserves_no_memory() {
    assert_eq!(
        decoded(b"T\xff\xff\xff\xff\0\0\0\0\x01"),
        Err(DecodeError::Short { field: "relation number", at: 10 })
    );
}

fn name() -> impl Strategy<Value = String> {
    "[a-zäß ]{0,8}"
}
fn row_of(unchanged: bool) -> impl Strategy<Value = Row> {
    let value = (0..if unchanged { 4u8 } else { 3 }, proptest::collection::vec(any::<u8>(), 0..12)).prop_map(
        |(kind, text)| match kind {
            0 => Value::Null,
            3 => Value::Unchanged,
            _ => Value::Text(text.into()),
        },
    );
    proptest::collection::vec(value, 0..6).prop_map(Row::from)
}
fn old_row() -> impl Strategy<Value = Old> {
    (any::<bool>(), row_of(false)).prop_map(|(full, row)| if full { Old::Full(row) } else { Old::Key(row) })
}
fn relation_message() -> impl Strategy<Value = Message> {
    let column = (any::<bool>(), name(), any::<u32>(), any::<i32>()).prop_map(
        |(in_identity, name, type_oid, type_modifier)| RelationColumn {
            in_identity,
            name,
            type_oid,
            type_modifier,
        },
    );
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index)
    ];
    (any::<u32>(), name(), name(), identity, proptest::collection::vec(column, 0..5)).prop_map(
        |(oid, schema, name, identity, columns)| {
            Message::Relation(Relation { oid, schema, name, identity, columns })
        },
    )
}
fn message() -> impl Strategy<Value = Message> {
    let position = || any::<u64>().prop_map(Position);
    let time = || 0..i64::MAX / 2;
    prop_oneof![
        (position(), time(), any::<u32>()).prop_map(|(commit_at, committed_at_us, xid)| Message::Begin {
            commit_at,
            committed_at_us,
            xid
        }),
        (position(), position(), time()).prop_map(|(commit_at, end, committed_at_us)| Message::Commit {
            commit_at,
            end,
            committed_at_us
        }),
        (position(), name()).prop_map(|(position, name)| Message::Origin { position, name }),
        relation_message(),
        (any::<u32>(), name(), name()).prop_map(|(oid, schema, name)| Message::Type { oid, schema, name }),
        (any::<u32>(), row_of(false)).prop_map(|(relation, new)| Message::Insert { relation, new }),
        (any::<u32>(), proptest::option::of(old_row()), row_of(true))
            .prop_map(|(relation, old, new)| Message::Update { relation, old, new }),
        (any::<u32>(), old_row()).prop_map(|(relation, old)| Message::Delete { relation, old }),
        (proptest::collection::vec(any::<u32>(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| Message::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
        (any::<bool>(), position(), name(), proptest::collection::vec(any::<u8>(), 0..9)).prop_map(
            |(transactional, position, prefix, content)| Message::Message {
                transactional,
                position,
                prefix,
                content: content.into()
            }
        ),
    ]
}

proptest! {
    #[test]
    fn every_message_reads_back_as_itself(message in message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn every_cut_and_every_addition_is_an_error(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&message);
        prop_assert!(decode(bytes.slice(..cut.index(bytes.len()))).is_err());
        let mut longer = BytesMut::from(&bytes[..]);
        longer.put_u8(0);
        prop_assert!(decode(longer.freeze()).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(bytes.into());
    }

    #[test]
    fn damaged_messages_never_panic(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&message).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(bytes.into());
    }
}
