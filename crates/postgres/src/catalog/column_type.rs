//! What a column's type means for its journey: the form it travels in, how its values compare. No I/O.

use super::collation::Collation;
use super::read::{ColumnFacts, Side, TypeFacts};
use segue_model::sqltext::quote_literal;
use segue_model::table::{ArrayForm, KeyOrder, Transport};

/// The first OID that a server gives to what users make; smaller ones are the same on every server.
const FIRST_USER_OID: u32 = 16_384;

/// How deep domains, arrays and composites may be nested before Segue gives up on their binary form.
const DEPTH_MAX: u32 = 32;

/// Types whose values every server orders alike, whatever its locales and libraries are.
const ORDERED_ALIKE: [&str; 24] = [
    "int2",
    "int4",
    "int8",
    "oid",
    "numeric",
    "float4",
    "float8",
    "money",
    "bool",
    "uuid",
    "bytea",
    "bit",
    "varbit",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "pg_lsn",
];

/// The type below all domains, with the modifier in effect.
fn base(side: &Side, oid: u32, typmod: i32) -> Option<(&TypeFacts, i32)> {
    let mut found = (side.types.get(&oid)?, typmod);
    while let Some((base, base_typmod)) = found.0.base {
        found = (side.types.get(&base)?, if found.1 >= 0 { found.1 } else { base_typmod });
    }
    Some(found)
}

/// The form in which values of a column travel. Text only where the binary form holds numbers of one server's
/// catalog, does not exist on a side, or means different things to the two versions.
pub(super) fn transport(
    source: &Side,
    target: &Side,
    source_column: &ColumnFacts,
    target_column: &ColumnFacts,
) -> Transport {
    let versions = (source.server.major(), target.server.major());
    let portable = |side, oid| is_portable(side, oid, versions, 0);
    if portable(source, source_column.type_oid) && portable(target, target_column.type_oid) {
        Transport::Binary
    } else {
        Transport::Text
    }
}

fn is_portable(side: &Side, oid: u32, versions: (i32, i32), depth: u32) -> bool {
    let Some(facts) = side.types.get(&oid) else { return false };
    let inner = |oid: u32| is_portable(side, oid, versions, depth + 1);
    let numbered_here = |oid: u32| oid >= FIRST_USER_OID;
    if !facts.has_binary || depth > DEPTH_MAX {
        return false;
    }
    match facts.kind {
        'd' => facts.base.is_some_and(|(base, _)| inner(base)),
        'e' => true,
        // Bounds are written with their own send function; no type number is in it.
        'r' | 'm' => facts.parts.iter().all(|part| inner(*part)),
        // Every attribute is preceded by its type's number.
        'c' => facts.parts.iter().all(|part| !numbered_here(*part) && inner(*part)),
        'b' => match facts.element {
            Some(element) => !numbered_here(element) && inner(element),
            None => !(holds_catalog_numbers(facts) || changed_between(facts, versions)),
        },
        _ => false,
    }
}

fn holds_catalog_numbers(facts: &TypeFacts) -> bool {
    facts.schema == "pg_catalog" && (facts.name.starts_with("reg") || facts.name == "aclitem")
}

/// `interval` knows infinity from 17 on; an older server would take its binary form for a huge finite one in silence.
fn changed_between(facts: &TypeFacts, (source, target): (i32, i32)) -> bool {
    facts.schema == "pg_catalog" && facts.name == "interval" && (source >= 17) != (target >= 17)
}

/// Whether values can be put into an array parameter of the column's own type.
pub(super) fn array_form(target: &Side, column: &ColumnFacts) -> ArrayForm {
    let Some((below, _)) = base(target, column.type_oid, column.typmod) else { return ArrayForm::CastText };
    let own = target.types.get(&column.type_oid);
    let typed = own.is_some_and(|own| own.has_array) && below.element.is_none() && below.kind != 'p';
    if typed { ArrayForm::Typed } else { ArrayForm::CastText }
}

/// How the source orders the column's values.
pub(super) fn key_order(source: &Side, column: &ColumnFacts) -> KeyOrder {
    let Some((facts, _)) = base(source, column.type_oid, column.typmod) else { return KeyOrder::AskSource };
    if facts.schema != "pg_catalog" {
        return KeyOrder::AskSource;
    }
    match facts.name.as_str() {
        "int2" | "int4" | "int8" | "oid" => KeyOrder::Integer,
        "uuid" | "bytea" => KeyOrder::Bytes,
        "text" | "varchar" if column.collation.as_ref().is_some_and(Collation::is_bytewise) => {
            KeyOrder::Bytes
        }
        "date" | "timestamp" | "timestamptz" => KeyOrder::Moment,
        _ => KeyOrder::AskSource,
    }
}

/// Whether it is known that both sides order the column's values alike.
///
/// Text is ordered by a collation, each side's own; an enum by its labels, each side's own. A type that is not built in is
/// ordered by a function that may be another one there, and one of several parts by the orders of all of them: of these
/// nothing is known.
pub(super) fn orders_alike(source: &Side, target: &Side, from: &ColumnFacts, to: &ColumnFacts) -> bool {
    let (Some((a, _)), Some((b, _))) =
        (base(source, from.type_oid, from.typmod), base(target, to.type_oid, to.typmod))
    else {
        return false;
    };
    if (a.kind, b.kind) == ('e', 'e') {
        return a.labels == b.labels;
    }
    if a.name != b.name || a.schema != "pg_catalog" || b.schema != "pg_catalog" {
        return false;
    }
    match a.name.as_str() {
        "text" | "varchar" | "bpchar" | "name" => match (&from.collation, &to.collation) {
            (Some(a), Some(b)) => a.orders_like(b),
            _ => false,
        },
        name => ORDERED_ALIKE.contains(&name),
    }
}

/// Whether equal values always have equal text, on both sides.
pub(super) fn is_bytewise(
    source: &Side,
    target: &Side,
    source_column: &ColumnFacts,
    target_column: &ColumnFacts,
) -> bool {
    let (Some((facts, typmod)), Some((_, target_typmod))) = (
        base(source, source_column.type_oid, source_column.typmod),
        base(target, target_column.type_oid, target_column.typmod),
    ) else {
        return false;
    };
    if facts.kind == 'e' {
        return true;
    }
    if facts.schema != "pg_catalog" {
        return false;
    }
    let deterministic = [source_column, target_column]
        .iter()
        .all(|column| column.collation.as_ref().is_none_or(|collation| collation.deterministic));
    let same_modifier = typmod >= 0 && typmod == target_typmod;
    match facts.name.as_str() {
        "int2" | "int4" | "int8" | "oid" | "uuid" | "bytea" | "bool" | "date" | "timestamp"
        | "timestamptz" | "time" | "inet" | "cidr" | "macaddr" | "macaddr8" | "bit" | "varbit" | "name"
        | "pg_lsn" | "xid8" => true,
        "text" | "varchar" => deterministic,
        // Padded to its length, or rounded to its scale: one value has one text.
        "bpchar" => deterministic && same_modifier,
        "numeric" => same_modifier,
        _ => false,
    }
}

/// Why a target column cannot hold every value of a source column exactly; `None` if it can.
pub(super) fn mismatch(source: &Side, target: &Side, from: &ColumnFacts, to: &ColumnFacts) -> Option<String> {
    let (Some(a), Some(b)) = (source.types.get(&from.type_oid), target.types.get(&to.type_oid)) else {
        return Some("its type cannot be read".to_owned());
    };
    if let Some(why) = type_mismatch(source, target, a, b, 0) {
        return Some(why);
    }
    if let Some(narrowed) = narrowed(source, target, a, b, 0) {
        return Some(format!(
            "the type {} holds {} on the {} and {} on the {}",
            narrowed.whole.sql, narrowed.on_source, source.label, narrowed.on_target, target.label
        ));
    }
    let below = base(source, from.type_oid, from.typmod);
    let name = below.map_or(a.name.as_str(), |(facts, _)| element(source, facts).name.as_str());
    (!fits(name, from.typmod, to.typmod)).then(|| {
        format!(
            "it is {} on the {} and {} on the {}",
            from.shown_type, source.label, to.shown_type, target.label
        )
    })
}

/// Whether every value of a type called `name` is the same with the modifier `to` as it was with `from`.
fn fits(name: &str, from: i32, to: i32) -> bool {
    if to == from {
        return true;
    }
    match name {
        // Without a length, char(n) keeps the blanks it was padded with.
        "bpchar" => false,
        _ if to < 0 => true,
        "varchar" | "varbit" | "time" | "timetz" | "timestamp" | "timestamptz" => from >= 0 && to > from,
        // precision << 16 | scale; a different scale would change the text of the values.
        "numeric" => from >= 0 && (from - 4) & 0xffff == (to - 4) & 0xffff && to > from,
        _ => false,
    }
}

/// A type that is inside another.
struct Inside<'a> {
    oid: u32,
    typmod: i32,
    /// With its modifier.
    shown: &'a str,
}

/// What a type is made of: an array's elements, what a domain is over, a composite's attributes, a range's bounds.
fn inside(facts: &TypeFacts) -> Vec<Inside<'_>> {
    let element = facts.element.map(|oid| Inside { oid, typmod: -1, shown: "" });
    let base = facts.base.map(|(oid, typmod)| Inside { oid, typmod, shown: facts.base_shown.as_str() });
    let parts = facts.parts.iter().zip(&facts.part_typmods).zip(&facts.parts_shown);
    let parts =
        parts.map(|((oid, typmod), shown)| Inside { oid: *oid, typmod: *typmod, shown: shown.as_str() });
    element.into_iter().chain(base).chain(parts).collect()
}

/// A type of the target whose values have less room inside than the source's.
struct Narrowed<'a> {
    whole: &'a TypeFacts,
    on_source: &'a str,
    on_target: &'a str,
}

/// The first modifier inside two types that are alike but for those by which values would not fit: the target's receive
/// functions round to their own in silence, or refuse.
fn narrowed<'a>(
    source: &'a Side,
    target: &'a Side,
    a: &'a TypeFacts,
    b: &'a TypeFacts,
    depth: u32,
) -> Option<Narrowed<'a>> {
    if depth > DEPTH_MAX {
        return None;
    }
    inside(a).into_iter().zip(inside(b)).find_map(|(from, to)| {
        let (below, there) = (source.types.get(&from.oid)?, target.types.get(&to.oid)?);
        if fits(&element(source, below).name, from.typmod, to.typmod) {
            narrowed(source, target, below, there, depth + 1)
        } else {
            Some(Narrowed { whole: b, on_source: from.shown, on_target: to.shown })
        }
    })
}

/// What is to be done about a type of the target that has less room inside; `None` if that is not what is wrong.
pub(super) fn made_anew(
    source: &Side,
    target: &Side,
    from: &ColumnFacts,
    to: &ColumnFacts,
) -> Option<String> {
    let (a, b) = (source.types.get(&from.type_oid)?, target.types.get(&to.type_oid)?);
    if type_mismatch(source, target, a, b, 0).is_some() {
        return None;
    }
    let Narrowed { whole, on_source, .. } = narrowed(source, target, a, b, 0)?;
    Some(format!(
        "on the {}, make the type {} anew with {on_source}, as it is on the {}: one that columns use cannot be altered, so they \
         are dropped with it, and added again",
        target.label, whole.sql, source.label
    ))
}

/// The statements that give the target's enum the labels that it lacks, each at its place; `None` if the columns are not of an
/// enum, or it lacks none.
pub(super) fn missing_labels(
    source: &Side,
    target: &Side,
    from: &ColumnFacts,
    to: &ColumnFacts,
) -> Option<String> {
    let a = element(source, source.types.get(&from.type_oid)?);
    let b = element(target, target.types.get(&to.type_oid)?);
    if (a.kind, b.kind) != ('e', 'e') || a.name != b.name || a.schema != b.schema {
        return None;
    }
    let mut statements = Vec::new();
    for (at, label) in a.labels.iter().enumerate().filter(|(_, label)| !b.labels.contains(label)) {
        let place = match at.checked_sub(1).and_then(|before| a.labels.get(before)) {
            Some(before) => format!(" AFTER {}", quote_literal(before)),
            None => {
                b.labels.first().map_or_else(String::new, |first| format!(" BEFORE {}", quote_literal(first)))
            }
        };
        statements.push(format!("ALTER TYPE {} ADD VALUE {}{place};", b.sql, quote_literal(label)));
    }
    (!statements.is_empty()).then(|| format!("on the {}: {}", target.label, statements.join(" ")))
}

/// The type of an array's elements, or the type itself.
fn element<'a>(side: &'a Side, facts: &'a TypeFacts) -> &'a TypeFacts {
    facts.element.and_then(|element| side.types.get(&element)).unwrap_or(facts)
}

fn type_mismatch(source: &Side, target: &Side, a: &TypeFacts, b: &TypeFacts, depth: u32) -> Option<String> {
    // An extension may live in another schema on the other server.
    let same_name = a.name == b.name && (a.schema == b.schema || a.of_extension && b.of_extension);
    let arrays = a.element.is_some() && b.element.is_some();
    if depth > DEPTH_MAX || a.kind != b.kind || !(same_name || arrays) {
        return Some(format!(
            "its type is {} on the {} and {} on the {}",
            a.sql, source.label, b.sql, target.label
        ));
    }
    if let Some(label) = a.labels.iter().find(|label| !b.labels.contains(label)) {
        return Some(format!("the enum {} lacks the label '{label}' on the {}", b.sql, target.label));
    }
    if a.kind == 'c' && (a.part_names != b.part_names || a.parts.len() != b.parts.len()) {
        return Some(format!("the composite type {} has other attributes on the {}", b.sql, target.label));
    }
    inside(a).into_iter().zip(inside(b)).find_map(|(a, b)| {
        match (source.types.get(&a.oid), target.types.get(&b.oid)) {
            (Some(a), Some(b)) => type_mismatch(source, target, a, b, depth + 1),
            _ => Some("a type inside its type cannot be read".to_owned()),
        }
    })
}

/// Columns that may hold numbers of large objects, which do not travel.
pub(super) fn may_name_large_objects(source: &Side, column: &ColumnFacts) -> bool {
    let named_lo = source.types.get(&column.type_oid).is_some_and(|facts| facts.name == "lo");
    named_lo || base(source, column.type_oid, -1).is_some_and(|(facts, _)| facts.name == "oid")
}

#[cfg(test)]
mod tests {
    use super::super::collation::tests::of;
    use super::super::read::Server;
    use super::*;
    use std::collections::HashMap;

    const TEXT: u32 = 25;
    const INT4: u32 = 23;
    const JSONB: u32 = 3802;
    const MOOD: u32 = 20_000;
    const WORD: u32 = 20_001;
    const CITEXT: u32 = 20_002;

    fn named(oid: u32, schema: &str, name: &str, kind: char) -> TypeFacts {
        TypeFacts {
            oid,
            schema: schema.into(),
            name: name.into(),
            sql: name.into(),
            kind,
            element: None,
            base: None,
            base_shown: String::new(),
            has_array: true,
            has_binary: true,
            of_extension: false,
            labels: Vec::new(),
            parts: Vec::new(),
            part_typmods: Vec::new(),
            parts_shown: Vec::new(),
            part_names: Vec::new(),
        }
    }

    /// A side whose type `mood` has these labels.
    fn side(label: &'static str, labels: &[&str]) -> Side {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let types = [
            named(TEXT, "pg_catalog", "text", 'b'),
            named(INT4, "pg_catalog", "int4", 'b'),
            named(JSONB, "pg_catalog", "jsonb", 'b'),
            TypeFacts { labels, ..named(MOOD, "public", "mood", 'e') },
            TypeFacts { base: Some((TEXT, -1)), ..named(WORD, "public", "word", 'd') },
            named(CITEXT, "public", "citext", 'b'),
        ];
        Side {
            label,
            server: Server { version: 150_000, encoding: "UTF8".into(), role: "segue".into() },
            roots: Vec::new(),
            relations: HashMap::new(),
            partitioned: HashMap::new(),
            columns: HashMap::new(),
            types: types.into_iter().map(|facts| (facts.oid, facts)).collect(),
            indexes: HashMap::new(),
            hashes: HashMap::new(),
        }
    }

    fn column(type_oid: u32, collation: Option<Collation>) -> ColumnFacts {
        ColumnFacts {
            name: "k".into(),
            type_oid,
            typmod: -1,
            not_null: true,
            has_default: false,
            identity: None,
            generated: false,
            shown_type: String::new(),
            collation,
        }
    }

    /// Whether columns of these types and collations are ordered alike by sides with the same labels.
    fn alike((a, by): (u32, Option<Collation>), (b, other): (u32, Option<Collation>)) -> bool {
        let (source, target) = (side("source", &["a", "b"]), side("target", &["a", "b"]));
        orders_alike(&source, &target, &column(a, by), &column(b, other))
    }

    #[test]
    fn text_is_ordered_alike_by_collations_that_are_also_where_it_is_a_domains() {
        let (bytes, swedish) = (|| Some(of('c', "C", "")), || Some(of('i', "sv", "153.120")));
        for oid in [TEXT, WORD] {
            assert!(alike((oid, bytes()), (oid, bytes())));
            assert!(alike((oid, swedish()), (oid, swedish())));
            assert!(!alike((oid, bytes()), (oid, swedish())));
            assert!(!alike((oid, None), (oid, None)));
        }
        // An extension's type compares as it likes, whatever collation it is given.
        assert!(!alike((CITEXT, bytes()), (CITEXT, bytes())));
    }

    #[test]
    fn numbers_are_ordered_alike_and_what_has_parts_may_not_be() {
        assert!(alike((INT4, None), (INT4, None)));
        assert!(!alike((JSONB, None), (JSONB, None)));
        assert!(!alike((INT4, None), (TEXT, None)));
        assert!(!alike((INT4, None), (30_000, None)), "a type that cannot be read");
    }

    #[test]
    fn enums_are_ordered_alike_if_their_labels_are() {
        let mood = column(MOOD, None);
        let source = side("source", &["a", "b"]);
        for (labels, expected) in
            [(&["a", "b"][..], true), (&["b", "a"][..], false), (&["a", "x", "b"][..], false)]
        {
            assert_eq!(orders_alike(&source, &side("target", labels), &mood, &mood), expected, "{labels:?}");
        }
    }
}
