//! What has become of the tables' columns since the migration began. Pure.
//!
//! Which columns travel is known from the birth on. Types, and the columns that one side has for itself, were found in
//! order when the attempt began, which plans anew: what counts is how they have changed since.

use super::born::{Born, BornTable};
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use segue_postgres::catalog::columns::{ColumnForm, ColumnForms};
use std::collections::BTreeMap;

/// The columns of both sides' tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    pub(super) source: BTreeMap<QualifiedName, ColumnForms>,
    pub(super) target: BTreeMap<QualifiedName, ColumnForms>,
}

impl Forms {
    fn of<'a>(&'a self, side: Side, table: &'a BornTable) -> (&'a QualifiedName, Option<&'a ColumnForms>) {
        match side {
            Side::Source => (&table.source, self.source.get(&table.source)),
            Side::Target => (&table.target, self.target.get(&table.target)),
        }
    }
}

/// How the tables differ now from those of the plan, each in words.
pub(super) fn differences(born: &Born, first: &Forms, now: &Forms) -> Vec<String> {
    let mut found = Vec::new();
    for table in &born.tables {
        for side in Side::ALL {
            let (name, columns) = now.of(side, table);
            match columns {
                None => found.push(format!("{name} is gone from the {side}")),
                Some(columns) => {
                    let first = first.of(side, table).1;
                    let what = changes(side, table, first.unwrap_or(columns), columns);
                    found.extend(what.into_iter().map(|what| format!("{name} {what} on the {side}")));
                }
            }
        }
    }
    found
}

fn changes(side: Side, table: &BornTable, first: &ColumnForms, now: &ColumnForms) -> Vec<String> {
    let mut found = Vec::new();
    let travels = |column: &String| table.columns.contains(column);
    let lost = table.columns.iter().filter(|column| !now.contains_key(*column));
    let lost_for_itself = first.keys().filter(|column| !now.contains_key(*column) && !travels(column));
    for column in lost.chain(lost_for_itself) {
        found.push(format!("has lost the column {}", quote_ident(column)));
    }
    for (column, form) in now {
        let shown = quote_ident(column);
        // Every column of the source travels but those it computes.
        let left_behind = side == Side::Source && !form.generated && !travels(column);
        match first.get(column) {
            None => found.push(format!("has a new column {shown}")),
            Some(_) if left_behind => found.push(format!("has a new column {shown}")),
            Some(was) => found.extend(change(&shown, was, form)),
        }
    }
    found
}

fn change(column: &str, was: &ColumnForm, now: &ColumnForm) -> Option<String> {
    if was.sql_type != now.sql_type {
        Some(format!("has the column {column} as {}, and not as {} any more", now.sql_type, was.sql_type))
    } else if was.generated != now.generated {
        let how = if now.generated { "computes" } else { "does not compute" };
        let when = if now.generated { "now" } else { "any more" };
        Some(format!("{how} the column {column} {when}"))
    } else if was.not_null != now.not_null {
        let null = if now.not_null { "no NULL any more" } else { "NULL now" };
        Some(format!("takes {null} in the column {column}"))
    } else if was.optional && !now.optional {
        Some(format!("has no default for the column {column} any more"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::table::TableId;

    fn form(sql_type: &str) -> ColumnForm {
        ColumnForm { sql_type: sql_type.into(), not_null: false, generated: false, optional: true }
    }

    fn born() -> Born {
        let table = BornTable {
            id: TableId(0),
            source: QualifiedName::new("public", "t"),
            target: QualifiedName::new("crm", "u"),
            columns: vec!["id".into(), "v".into()],
        };
        Born { at_us: 0, tables: vec![table] }
    }

    /// Two columns travel, the source computes one, and the target has one for itself.
    fn forms() -> Forms {
        let side = |name, columns: Vec<(&str, ColumnForm)>| {
            let columns = columns.into_iter().map(|(name, form)| (name.to_owned(), form)).collect();
            BTreeMap::from([(name, columns)])
        };
        let travelling = || vec![("id", form("integer")), ("v", form("text"))];
        let computed = ColumnForm { generated: true, ..form("integer") };
        Forms {
            source: side(
                QualifiedName::new("public", "t"),
                travelling().into_iter().chain([("sum", computed)]).collect(),
            ),
            target: side(
                QualifiedName::new("crm", "u"),
                travelling().into_iter().chain([("own", form("text"))]).collect(),
            ),
        }
    }

    fn source(forms: &mut Forms) -> &mut ColumnForms {
        forms.source.get_mut(&QualifiedName::new("public", "t")).unwrap()
    }

    fn target(forms: &mut Forms) -> &mut ColumnForms {
        forms.target.get_mut(&QualifiedName::new("crm", "u")).unwrap()
    }

    fn after(change: impl FnOnce(&mut Forms)) -> Vec<String> {
        let mut now = forms();
        change(&mut now);
        differences(&born(), &forms(), &now)
    }

    #[test]
    fn tables_as_they_were_do_not_differ() {
        assert_eq!(after(|_| ()), [""; 0]);
    }

    #[test]
    fn every_change_is_named_with_its_side() {
        let lacking = |forms: &mut Forms, name: &str| drop(target(forms).remove(name));
        let cases: [(Vec<String>, &str); 11] = [
            (
                after(|now| drop(source(now).insert("w".into(), form("text")))),
                r#"public.t has a new column "w" on the source"#,
            ),
            (
                after(|now| drop(target(now).insert("W".into(), form("text")))),
                r#"crm.u has a new column "W" on the target"#,
            ),
            (after(|now| drop(source(now).remove("v"))), r#"public.t has lost the column "v" on the source"#),
            (after(|now| lacking(now, "v")), r#"crm.u has lost the column "v" on the target"#),
            (after(|now| lacking(now, "own")), r#"crm.u has lost the column "own" on the target"#),
            (
                after(|now| drop(target(now).insert("v".into(), form("character varying(9)")))),
                r#"crm.u has the column "v" as character varying(9), and not as text any more on the target"#,
            ),
            (
                after(|now| drop(source(now).insert("sum".into(), form("integer")))),
                r#"public.t has a new column "sum" on the source"#,
            ),
            (
                after(|now| target(now).get_mut("v").unwrap().not_null = true),
                r#"crm.u takes no NULL any more in the column "v" on the target"#,
            ),
            (
                after(|now| target(now).get_mut("own").unwrap().optional = false),
                r#"crm.u has no default for the column "own" any more on the target"#,
            ),
            (
                after(|now| target(now).get_mut("v").unwrap().generated = true),
                r#"crm.u computes the column "v" now on the target"#,
            ),
            (after(|now| now.target.clear()), "crm.u is gone from the target"),
        ];
        for (found, expected) in cases {
            assert_eq!(found, [expected]);
        }
    }

    #[test]
    fn what_the_birth_did_not_know_is_new_even_if_it_was_there_when_the_attempt_began() {
        let mut first = forms();
        source(&mut first).insert("w".into(), form("text"));
        target(&mut first).remove("v");
        let found = differences(&born(), &first, &first);
        assert_eq!(
            found,
            [
                r#"public.t has a new column "w" on the source"#,
                r#"crm.u has lost the column "v" on the target"#
            ]
        );
    }
}
