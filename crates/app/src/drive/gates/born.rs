//! The plan as the stream was born with it, from the journal's record.

use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::table::TableId;
use segue_postgres::control::Entry;
use serde::Deserialize;
use serde_json::Value;

/// A table as it was planned; see `plan::remembered`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BornTable {
    /// Its number.
    pub(super) id: TableId,
    /// Where its rows were.
    pub(super) source: QualifiedName,
    /// Where they go.
    pub(super) target: QualifiedName,
    /// The columns that travel, by their names on the source, which the target's are.
    pub(super) columns: Vec<String>,
}

/// What was planned, and when the stream was born.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Born {
    /// In microseconds since 1970, by the control database's clock.
    pub(super) at_us: i64,
    /// Every table.
    pub(super) tables: Vec<BornTable>,
}

#[derive(Deserialize)]
struct Record {
    id: u32,
    source: String,
    target: String,
    columns: Vec<String>,
}

impl Born {
    /// From the journal's last record of a birth.
    pub(super) fn read(journal: &[Entry]) -> Outcome<Born> {
        let Some(born) = journal.iter().rev().find(|entry| entry.entry.kind == "born") else {
            return Err(Fault::bug("SEGUE-GATES", "gates were asked for before the stream was born"));
        };
        let unreadable = |why: String| {
            Fault::bug("SEGUE-JOURNAL", format!("the record of the stream's birth cannot be read: {why}"))
        };
        let tables = born.entry.body.pointer("/plan/tables").cloned().unwrap_or(Value::Null);
        let records: Vec<Record> = serde_json::from_value(tables).map_err(|e| unreadable(e.to_string()))?;
        let name = |text: &str| QualifiedName::parse(text).map_err(|e| unreadable(format!("{text}: {e}")));
        let table = |record: Record| {
            let (source, target) = (name(&record.source)?, name(&record.target)?);
            Ok(BornTable { id: TableId(record.id), source, target, columns: record.columns })
        };
        Ok(Born { at_us: born.at_us, tables: records.into_iter().map(table).collect::<Outcome<_>>()? })
    }

    /// Their names on the source.
    pub(super) fn sources(&self) -> Vec<QualifiedName> {
        self.tables.iter().map(|table| table.source.clone()).collect()
    }

    /// Their names on the target.
    pub(super) fn targets(&self) -> Vec<QualifiedName> {
        self.tables.iter().map(|table| table.target.clone()).collect()
    }

    /// Both, in the order that numbers them.
    pub(super) fn pairs(&self) -> Vec<(QualifiedName, QualifiedName)> {
        self.tables.iter().map(|table| (table.source.clone(), table.target.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;
    use serde_json::json;

    fn entry(at_us: i64, kind: &str, body: Value) -> Entry {
        Entry {
            seq: at_us,
            at_us,
            entry: NewEntry { version: 1, actor: "a".into(), kind: kind.into(), body },
        }
    }

    #[test]
    fn the_last_birth_says_which_tables_there_are() {
        let plan = |column: &str| {
            json!({ "plan": { "tables": [
                { "id": 3, "source": "public.a", "target": "crm.\"B\"", "columns": ["id", column] }] } })
        };
        let journal = [
            entry(1, "preparing", json!({})),
            entry(2, "born", plan("old")),
            entry(3, "born", plan("new")),
            entry(4, "following", json!({})),
        ];
        let born = Born::read(&journal).unwrap();
        let table = BornTable {
            id: TableId(3),
            source: QualifiedName::new("public", "a"),
            target: QualifiedName::new("crm", "B"),
            columns: vec!["id".into(), "new".into()],
        };
        assert_eq!(born, Born { at_us: 3, tables: vec![table] });
    }

    #[test]
    fn a_record_that_cannot_be_read_is_no_plan_without_tables() {
        assert_eq!(Born::read(&[entry(1, "preparing", json!({}))]).unwrap_err().code, "SEGUE-GATES");
        let unnamed =
            json!({ "plan": { "tables": [{ "id": 0, "source": "", "target": "b.c", "columns": [] }] } });
        for body in
            [json!({}), json!({ "plan": {} }), json!({ "plan": { "tables": [{ "id": 1 }] } }), unnamed]
        {
            assert_eq!(Born::read(&[entry(1, "born", body)]).unwrap_err().code, "SEGUE-JOURNAL");
        }
    }
}
