//! Constraints: which are on one side only, and which lead out of the migration.

use super::{Finding, Looks};
use crate::definition::settled;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};

/// What a table promises about its rows, on one side.
struct Promise {
    name: String,
    /// `CHECK`, `FOREIGN KEY`, `EXCLUDE`, `UNIQUE`.
    kind: &'static str,
    /// After ADD CONSTRAINT, or CREATE UNIQUE INDEX … ON …, with the target's names.
    definition: String,
    /// Backed by a constraint, which DROP CONSTRAINT takes away; else by an index alone.
    is_constraint: bool,
    /// An index that CREATE INDEX CONCURRENTLY has left behind: rows need not keep to it.
    is_cut_short: bool,
}

/// By table and by what is promised, whatever it is called.
type Promises = BTreeMap<(i64, String), Promise>;

async fn promises(looks: &Looks<'_>, side: Side) -> Outcome<Promises> {
    let sql = "SELECT t.no, o.conname::text AS name, o.contype::text AS kind, pg_get_constraintdef(o.oid) AS definition,
                fn.nspname::text AS to_schema, f.relname::text AS to_table, true AS is_constraint,
                false AS is_cut_short
           FROM root t JOIN pg_constraint o ON o.conrelid = t.oid AND o.contype IN ('c', 'f', 'x')
           LEFT JOIN pg_class f ON f.oid = o.confrelid LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace
         UNION ALL
         SELECT t.no, c.relname::text, 'u', substr(pg_get_indexdef(c.oid), strpos(pg_get_indexdef(c.oid), ' USING ') + 1), NULL, NULL,
                EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = c.oid AND o.conrelid = t.oid),
                c.relkind = 'i' AND NOT (i.indisvalid AND i.indisready)
           FROM root t JOIN pg_index i ON i.indrelid = t.oid AND i.indisunique AND NOT i.indisprimary AND i.indislive
           JOIN pg_class c ON c.oid = i.indexrelid
          ORDER BY is_cut_short DESC";
    let mut found = Promises::new();
    // Of two alike the one that holds comes last, and counts.
    for row in looks.ask_pairs(side, sql).await? {
        let mut definition = settled(row.get("definition"));
        if let (Some(schema), Some(name)) =
            (row.get::<_, Option<&str>>("to_schema"), row.get::<_, Option<&str>>("to_table"))
        {
            let referenced = QualifiedName::new(schema, name);
            let there =
                if side == Side::Source { looks.counterpart(&referenced) } else { referenced.clone() };
            definition = reworded(&definition, &there);
        }
        let key = definition.trim_end_matches(" NOT VALID").to_owned();
        let kind = match row.get::<_, &str>("kind") {
            "c" => "CHECK",
            "f" => "FOREIGN KEY",
            "x" => "EXCLUDE",
            _ => "UNIQUE",
        };
        let (name, is_constraint) = (row.get("name"), row.get("is_constraint"));
        let is_cut_short = row.get("is_cut_short");
        let promise = Promise { name, kind, definition, is_constraint, is_cut_short };
        found.insert((row.get("no"), key), promise);
    }
    Ok(found)
}

/// A foreign key's definition, with the table that it refers to as the target calls it.
fn reworded(definition: &str, to: &QualifiedName) -> String {
    let Some((before, after)) = definition.split_once(" REFERENCES ") else { return definition.to_owned() };
    let Some(columns) = after.find('(') else { return definition.to_owned() };
    format!("{before} REFERENCES {}{}", to.sql(), &after[columns..])
}

/// The target's tables whose foreign keys cannot be NOT VALID: partitioned ones, before PostgreSQL 18.
async fn checked_at_once(looks: &Looks<'_>) -> Outcome<BTreeSet<i64>> {
    let sql = "SELECT t.no FROM root t JOIN pg_class c ON c.oid = t.oid
          WHERE c.relkind = 'p' AND current_setting('server_version_num')::int < 180000";
    Ok(looks.ask_pairs(Side::Target, sql).await?.iter().map(|row| row.get(0)).collect())
}

/// The statement that makes a foreign key, and when to run it.
fn foreign_key(table: &str, name: &str, definition: &str, is_checked_at_once: bool) -> String {
    let definition = definition.trim_end_matches(" NOT VALID");
    let add = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}");
    if is_checked_at_once {
        return format!(
            "{add}; -- after the backfill: a partitioned table's cannot be NOT VALID before PostgreSQL 18"
        );
    }
    format!("{add} NOT VALID; -- and VALIDATE CONSTRAINT after the backfill")
}

/// An index of the source's that holds nobody to anything. The target's rows may contradict it, as the source's do.
fn left_behind(looks: &Looks<'_>, no: i64, dud: &Promise) -> Finding {
    let table = looks.table(Side::Source, no);
    let index = QualifiedName::new(&table.schema, &dud.name).sql();
    let what = format!(
        "{} {} of {table} is not valid on the source, as its making was cut short: it is not asked of the target",
        dud.kind, dud.name
    );
    let remedy = format!("DROP INDEX {index}; -- or REINDEX INDEX CONCURRENTLY, once its rows are unique");
    Finding::warn(Side::Source, what, remedy).about(&table)
}

/// A promise that only the source keeps is broken after the switch; one that only the target keeps refuses a row that the
/// source has taken, and the stream stops there.
pub(super) async fn one_sided(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (here, there) = (promises(looks, Side::Source).await?, promises(looks, Side::Target).await?);
    let checked_at_once = checked_at_once(looks).await?;
    let (cut_short, here): (Promises, Promises) = here.into_iter().partition(|(_, one)| one.is_cut_short);
    let mut found: Vec<Finding> =
        cut_short.iter().map(|((no, _), dud)| left_behind(looks, *no, dud)).collect();
    for ((no, _), promise) in here.iter().filter(|(key, _)| !there.contains_key(key)) {
        let table = looks.table(Side::Target, *no);
        let what = format!(
            "{} {} of {table} is kept on the source only: after the switch nothing keeps the rows to it",
            promise.kind, promise.name
        );
        let (name, sql) = (quote_ident(&promise.name), table.sql());
        let remedy = match promise.kind {
            "UNIQUE" => format!(
                "CREATE UNIQUE INDEX {name} ON {sql} {}; -- better after the backfill",
                promise.definition
            ),
            "FOREIGN KEY" => foreign_key(&sql, &name, &promise.definition, checked_at_once.contains(no)),
            _ => format!("ALTER TABLE {sql} ADD CONSTRAINT {name} {};", promise.definition),
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(&table));
    }
    for ((no, _), promise) in there.iter().filter(|(key, _)| !here.contains_key(key)) {
        let table = looks.table(Side::Target, *no);
        let then = match promise.kind {
            // Triggers do not fire for what is applied.
            "FOREIGN KEY" => {
                "rows that are applied are not held to it, and those that break it are there when it begins to count"
            }
            _ => "a row that breaks it is taken on the source, and stops the stream here",
        };
        let what = format!("{} {} of {table} is kept on the target only: {then}", promise.kind, promise.name);
        let (name, sql) = (quote_ident(&promise.name), table.sql());
        let remedy = if promise.is_constraint {
            format!("ALTER TABLE {sql} DROP CONSTRAINT {name};")
        } else {
            let index = QualifiedName::new(&table.schema, &promise.name);
            format!("DROP INDEX {};", index.sql())
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(&table));
    }
    Ok(found)
}

/// A foreign key between a table that moves and one that stays refers, after the switch, to a table on the other server.
pub(super) async fn leading_out(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT DISTINCT o.conname::text, n.nspname::text, c.relname::text, fn.nspname::text, f.relname::text, o.conrelid IN (SELECT oid FROM tree)
           FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_class f ON f.oid = o.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace
          WHERE o.contype = 'f' AND o.conparentid = 0
            AND (o.conrelid IN (SELECT oid FROM tree)) <> (o.confrelid IN (SELECT oid FROM tree)) ORDER BY 2, 3, 1";
    let rows = looks.ask_tables(Side::Source, sql).await?;
    let finding = |row: &tokio_postgres::Row| {
        let name: &str = row.get(0);
        let from = QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
        let to = QualifiedName::new(row.get::<_, &str>(3), row.get::<_, &str>(4));
        let (stays, what) = if row.get(5) {
            let what = format!(
                "{from} refers to {to} ({name}), which is not migrated: after the switch the rows it refers to are on the other server"
            );
            (&to, what)
        } else {
            let what = format!(
                "{from}, which is not migrated, refers to {to} ({name}): after the switch the source's copy of {to} gets no new rows, \
                 and inserts into {from} fail"
            );
            (&from, what)
        };
        let remedy = format!(
            "ALTER TABLE {} DROP CONSTRAINT {}; -- or, better, list {stays} in the spec too",
            from.sql(),
            quote_ident(name)
        );
        Finding::warn(Side::Source, what, remedy).about(stays)
    };
    Ok(rows.iter().map(finding).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitioned_table_before_18_is_told_no_not_valid() {
        let of = |at_once| {
            foreign_key("public.p", "fk", "FOREIGN KEY (v) REFERENCES public.t(id) NOT VALID", at_once)
        };
        let add = "ALTER TABLE public.p ADD CONSTRAINT fk FOREIGN KEY (v) REFERENCES public.t(id)";
        assert!(of(true).starts_with(&format!("{add}; -- after the backfill")), "{}", of(true));
        assert!(of(false).starts_with(&format!("{add} NOT VALID; --")), "{}", of(false));
    }

    #[test]
    fn a_foreign_key_refers_to_the_targets_table() {
        let to = QualifiedName::new("crm", "customer");
        assert_eq!(
            reworded("FOREIGN KEY (c) REFERENCES public.customers(id) ON DELETE CASCADE", &to),
            "FOREIGN KEY (c) REFERENCES \"crm\".\"customer\"(id) ON DELETE CASCADE"
        );
        assert_eq!(reworded("CHECK ((a > 0))", &to), "CHECK ((a > 0))");
    }
}
