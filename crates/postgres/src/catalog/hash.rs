//! Bounds of hash partitions, in words that mean the same on every server.
//!
//! PostgreSQL writes such a bound as a call that names the partitioned table by its number, and takes from that table how its keys are
//! hashed. The other side may have no such table, or one with other keys. So the call is written out: a sum over the hashes of the
//! keys' values (`hash_combine64` and `satisfies_hash_partition` of PostgreSQL's sources), each by a function of the server that can be
//! called with a value. The hash of some types is not the same on two servers: of those nothing is said that could be wrong.

use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use std::collections::HashMap;
use std::fmt::{Display, Write};
use tokio_postgres::GenericClient;

/// What stands for a bound that cannot be said. It is true of no row, and whoever acts on it asks [`is_untold`] before.
const UNTOLD: &str = "(NULL::boolean /* the hash of its key is another one here */)";
/// `HASH_PARTITION_SEED`.
const SEED: &str = "8816678312871386365";

/// How the hash of one key of a table is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// By a function that is called with what stands before the value and behind it.
    Call(&'static str, &'static str),
    /// As every server computes it, which only a table that is partitioned alike can be asked for.
    Alike,
    /// Servers may come to different results.
    Own,
}

/// The hashes of the keys of hash partitioned tables, by number.
pub(super) type Hashes = HashMap<u32, Vec<Hash>>;

impl Hash {
    /// That of PostgreSQL's own operators for its type `name`. `is_of_bytes`: two servers have the same bytes for a text, and
    /// equal texts have equal bytes.
    fn of(name: &str, is_of_bytes: bool) -> Hash {
        let (before, behind) = match name {
            "int2" => ("hashint2extended(", ""),
            "int4" => ("hashint4extended(", ""),
            "int8" => ("hashint8extended(", ""),
            "oid" => ("hashoidextended(", ""),
            "bool" => ("hashcharextended((", ")::int::\"char\""),
            "numeric" => ("hash_numeric_extended(", ""),
            "uuid" => ("uuid_hash_extended(", ""),
            "time" => ("time_hash_extended(", ""),
            "timetz" => ("timetz_hash_extended(", ""),
            "interval" => ("interval_hash_extended(", ""),
            "timestamp" => ("timestamp_hash_extended(", ""),
            // The number of days.
            "date" => ("hashint4extended(('x' || encode(date_send(", "), 'hex'))::bit(32)::int"),
            // The number of microseconds is the same.
            "timestamptz" => ("timestamp_hash_extended((", ") AT TIME ZONE 'UTC'"),
            "inet" => ("hashinetextended(", ""),
            "macaddr" => ("hashmacaddrextended(", ""),
            "macaddr8" => ("hashmacaddr8extended(", ""),
            "text" if is_of_bytes => ("hashtextextended((", ") COLLATE \"C\""),
            "bpchar" if is_of_bytes => ("hashbpcharextended((", ") COLLATE \"C\""),
            "bytea" => return Hash::Alike,
            _ => return Hash::Own,
        };
        Hash::Call(before, behind)
    }
}

/// How the keys of those of `tables` are hashed that are partitioned by hash.
pub(super) async fn read(client: &impl GenericClient, tables: &[u32]) -> Outcome<Hashes> {
    let sql = "SELECT h.partrelid, CASE WHEN o.opcdefault AND n.nspname = 'pg_catalog' THEN y.typname::text ELSE '' END,
                coalesce(l.collisdeterministic, true) AND current_setting('server_encoding') = 'UTF8', k.attnum <> 0
           FROM pg_partitioned_table h
          CROSS JOIN LATERAL unnest(h.partclass::oid[], h.partcollation::oid[], h.partattrs::int2[])
                WITH ORDINALITY k(opclass, coll, attnum, no)
           JOIN pg_opclass o ON o.oid = k.opclass JOIN pg_type y ON y.oid = o.opcintype
           JOIN pg_namespace n ON n.oid = y.typnamespace LEFT JOIN pg_collation l ON l.oid = k.coll
          WHERE h.partstrat = 'h' AND h.partrelid = ANY($1::oid[]) ORDER BY h.partrelid, k.no";
    let rows = client.query(sql, &[&tables]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("reading how partitions are hashed"))?;
    let mut found = Hashes::new();
    for row in &rows {
        // What is computed of a row may be computed otherwise on another server.
        let is_column: bool = row.get(3);
        let hash = if is_column { Hash::of(row.get(1), row.get(2)) } else { Hash::Own };
        found.entry(row.get(0)).or_default().push(hash);
    }
    Ok(found)
}

/// A leaf's partition constraint as the other side can evaluate it. `named` gives the table there that a partitioned one here becomes.
pub(super) fn told(condition: &str, hashes: &Hashes, named: impl Fn(u32) -> Option<QualifiedName>) -> String {
    let call = "satisfies_hash_partition(";
    let mut rest = condition;
    let mut told = String::new();
    while let Some(at) = rest.find(call) {
        let Some((arguments, behind)) = arguments(&rest[at + call.len()..]) else { return UNTOLD.to_owned() };
        told.push_str(&rest[..at]);
        told.push_str(&bound(&arguments, hashes, &named).unwrap_or_else(|| UNTOLD.to_owned()));
        rest = behind;
    }
    told + rest
}

/// The arguments of a call up to its closing bracket, and what is behind that.
fn arguments(text: &str) -> Option<(Vec<&str>, &str)> {
    let (mut depth, mut begun) = (0_u32, 0);
    let mut quote: Option<char> = None;
    let mut found = Vec::new();
    for (at, c) in text.char_indices() {
        match (quote, c) {
            // One that is doubled ends a text, and begins the rest of it.
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ',') if depth == 0 => {
                found.push(text[begun..at].trim());
                begun = at + 1;
                if c == ')' {
                    return Some((found, &text[begun..]));
                }
            }
            (None, ')' | ']') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
    }
    None
}

/// A bound from the arguments of PostgreSQL's call.
fn bound(
    arguments: &[&str],
    hashes: &Hashes,
    named: impl Fn(u32) -> Option<QualifiedName>,
) -> Option<String> {
    let [parent, modulus, remainder, keys @ ..] = arguments else { return None };
    let parent: u32 = parent.strip_prefix('\'')?.strip_suffix("'::oid")?.parse().ok()?;
    let hashes = hashes.get(&parent).filter(|hashes| hashes.len() == keys.len() && !keys.is_empty())?;
    if hashes.contains(&Hash::Own) {
        return None;
    }
    let call = |(key, hash): (&&str, &Hash)| match hash {
        Hash::Call(before, behind) => Some(format!("pg_catalog.{before}{key}{behind}, {SEED})")),
        Hash::Alike | Hash::Own => None,
    };
    match keys.iter().zip(hashes).map(call).collect::<Option<Vec<String>>>() {
        Some(calls) => Some(sum(&calls, modulus, remainder)),
        None => {
            let name = quote_literal(&named(parent)?.sql());
            let keys = keys.join(", ");
            Some(format!(
                "satisfies_hash_partition({name}::pg_catalog.regclass, {modulus}, {remainder}, {keys})"
            ))
        }
    }
}

/// Whether the hashes of a row's keys, put together, leave this remainder. They are numbers of 64 bits without a sign. The calls
/// stand in VALUES: there no name of the query around them hides a column of the row.
fn sum(calls: &[String], modulus: &str, remainder: &str) -> String {
    let names: Vec<String> = (1..=calls.len()).map(|n| format!("h{n}")).collect();
    let mut steps = String::new();
    let mut so_far = "0::bigint".to_owned();
    for (n, name) in (1..).zip(&names) {
        // A key that is NULL counts for nothing.
        let _ = write!(
            steps,
            ", LATERAL (SELECT CASE WHEN h.{name} IS NULL THEN {so_far} ELSE {so_far} # (pg_catalog.mod(h.{name} + \
             5305509591434766563::numeric + ({so_far} << 54) + (({so_far} >> 7) & 144115188075855871) + 46116860184273879040, \
             18446744073709551616) - 9223372036854775808)::bigint END) AS s{n}(a)"
        );
        so_far = format!("s{n}.a");
    }
    format!(
        "(SELECT pg_catalog.mod({so_far} + CASE WHEN {so_far} < 0 THEN 18446744073709551616 ELSE 0 END, {modulus}) = {remainder} \
         FROM (VALUES ({})) AS h({}){steps})",
        calls.join(", "),
        names.join(", ")
    )
}

/// Whether a condition is about a bound that cannot be said.
pub(crate) fn is_untold(condition: &str) -> bool {
    condition.contains(UNTOLD)
}

/// Rows of a leaf must go, and cannot be told from others.
pub(crate) fn untold(table: &QualifiedName, leaf: impl Display) -> Fault {
    Fault::operator(
        "SEGUE-HASH-LEAF",
        format!(
            "{table}: {leaf} was emptied by itself (TRUNCATE, or a partition that left or came), and which rows were its own cannot be \
             told: each server hashes its key to another number"
        ),
        "`segue run --new-stream` compares all rows, removes those that are gone, and writes those that differ; a way back that has met it \
         cannot go on, and only `segue complete` ends its waiting. To be spared that, empty such partitions by DELETE, or the whole table",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(condition: &str, hashes: &[Hash]) -> String {
        let named = |oid| (oid == 16400).then(|| QualifiedName::new("S", "it's"));
        told(condition, &Hashes::from([(16400, hashes.to_vec())]), named)
    }

    #[test]
    fn a_bound_is_a_sum_over_the_hashes_of_its_keys() {
        let hashes = [Hash::of("int4", true), Hash::of("text", true)];
        let condition = "((k >= 1) AND satisfies_hash_partition('16400'::oid, 4, 3, k, \"A,)\") AND (k < 9))";
        let told = told_of(condition, &hashes);
        for part in [
            "((k >= 1) AND (SELECT pg_catalog.mod(s2.a + CASE",
            ", 4) = 3 FROM (VALUES (pg_catalog.hashint4extended(k, 8816678312871386365), \
             pg_catalog.hashtextextended((\"A,)\") COLLATE \"C\", 8816678312871386365))) AS h(h1, h2), LATERAL (SELECT CASE WHEN h.h1 ",
            "AS s2(a)) AND (k < 9))",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!is_untold(&told));
    }

    #[test]
    fn what_only_a_table_can_be_asked_for_names_that_of_the_target() {
        assert_eq!(
            told_of("satisfies_hash_partition('16400'::oid, 2, 0, id)", &[Hash::of("bytea", true)]),
            "satisfies_hash_partition('\"S\".\"it''s\"'::pg_catalog.regclass, 2, 0, id)"
        );
    }

    #[test]
    fn what_may_be_another_hash_there_is_not_said() {
        for (name, is_of_bytes) in [("anyenum", true), ("", true), ("text", false)] {
            assert!(is_untold(&told_of(
                "(satisfies_hash_partition('16400'::oid, 2, 0, id) AND true)",
                &[Hash::of(name, is_of_bytes)]
            )));
        }
        // Of a table that is not known, in other words than expected, or cut short.
        for condition in [
            "satisfies_hash_partition('7'::oid, 2, 0, id)",
            "satisfies_hash_partition('16400'::oid, 2, 0, id, other)",
            "satisfies_hash_partition(16400, 2, 0, id)",
            "satisfies_hash_partition('16400'::oid, 2, 0, id",
        ] {
            assert!(is_untold(&told_of(condition, &[Hash::of("int4", true)])), "{condition}");
        }
        assert_eq!(told_of("(k = 1)", &[]), "(k = 1)");
    }
}
