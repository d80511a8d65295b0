//! Triggers and rules: which fire while rows are applied, and which are on one side only.

use super::{Finding, Looks};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::collections::BTreeMap;

/// A trigger ENABLEd ALWAYS or REPLICA fires for every row that Segue writes, and changes rows, or repeats work, that the
/// source has done already.
pub(super) async fn firing(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT n.nspname::text, c.relname::text, g.tgname::text, 'TRIGGER', g.tgenabled::text
           FROM tree t JOIN pg_trigger g ON g.tgrelid = t.oid AND g.tgenabled IN ('A', 'R') AND NOT g.tgisinternal
           JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace AND pn.nspname <> 'segue'
         UNION ALL
         SELECT n.nspname::text, c.relname::text, r.rulename::text, 'RULE', r.ev_enabled::text
           FROM tree t JOIN pg_rewrite r ON r.ev_class = t.oid AND r.ev_enabled IN ('A', 'R') AND r.ev_type <> '1'
           JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
          ORDER BY 1, 2, 3";
    let mut found = Vec::new();
    for side in looks.landing() {
        for row in looks.ask_tables(side, sql).await? {
            let table = QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
            let (name, kind, enabled): (&str, &str, &str) = (row.get(2), row.get(3), row.get(4));
            let enabled = if enabled == "A" { "ALWAYS" } else { "REPLICA" };
            let when = match side {
                Side::Target => "for every row that is copied or applied",
                Side::Source => "for every row that comes back after the switch",
            };
            let what = format!(
                "the {} {name} of {table} is ENABLEd {enabled} on the {side}: it fires {when}, so that the sides may differ",
                kind.to_lowercase()
            );
            let remedy = format!("ALTER TABLE {} ENABLE {kind} {};", table.sql(), quote_ident(name));
            found.push(Finding::warn(side, what, remedy).about(&table));
        }
    }
    Ok(found)
}

/// A trigger or rule on one side.
struct Hook {
    is_off: bool,
    /// Its whole statement, with the table's name on its own side.
    definition: String,
}

async fn hooks(looks: &Looks<'_>, side: Side) -> Outcome<BTreeMap<(i64, &'static str, String), Hook>> {
    let sql = "SELECT t.no, 'TRIGGER', g.tgname::text, g.tgenabled = 'D', pg_get_triggerdef(g.oid)
           FROM root t JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal
           JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace AND pn.nspname <> 'segue'
         UNION ALL
         SELECT t.no, 'RULE', r.rulename::text, r.ev_enabled = 'D', pg_get_ruledef(r.oid)
           FROM root t JOIN pg_rewrite r ON r.ev_class = t.oid AND r.ev_type <> '1'";
    let hook = |row: &tokio_postgres::Row| {
        let kind = if row.get::<_, &str>(1) == "RULE" { "RULE" } else { "TRIGGER" };
        let hook = Hook { is_off: row.get(3), definition: row.get(4) };
        ((row.get(0), kind, row.get(2)), hook)
    };
    Ok(looks.ask_pairs(side, sql).await?.iter().map(hook).collect())
}

/// What a trigger does for the application on the source it has to do on the target after the switch, and nothing more.
pub(super) async fn one_sided(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (here, there) = (hooks(looks, Side::Source).await?, hooks(looks, Side::Target).await?);
    let mut found = Vec::new();
    for (key @ (no, kind, name), hook) in here.iter().filter(|(_, hook)| !hook.is_off) {
        let (from, table) = (looks.table(Side::Source, *no), looks.table(Side::Target, *no));
        let word = kind.to_lowercase();
        let (what, remedy) = match there.get(key) {
            Some(other) if !other.is_off => continue,
            Some(_) => (
                format!("the {word} {name} of {table} is disabled on the target"),
                format!("ALTER TABLE {} ENABLE {kind} {};", table.sql(), quote_ident(name)),
            ),
            None => (
                format!(
                    "the {word} {name} of {from} is not there on the target: what it does is not done after the switch"
                ),
                format!(
                    "{};",
                    hook.definition
                        .replace(&format!(" ON {from} "), &format!(" ON {} ", table.sql()))
                        .trim_end_matches(';')
                ),
            ),
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(&table));
    }
    for ((no, kind, name), _) in there.iter().filter(|(key, hook)| !hook.is_off && !here.contains_key(key)) {
        let table = looks.table(Side::Target, *no);
        let what = format!(
            "the {} {name} of {table} is on the target only: the application's writes begin to fire it with the switch",
            kind.to_lowercase()
        );
        let remedy = format!("DROP {kind} {} ON {}; -- if that is not meant", quote_ident(name), table.sql());
        found.push(Finding::warn(Side::Target, what, remedy).about(&table));
    }
    Ok(found)
}
