//! What uses the tables: views, functions, and statements that join them with tables that stay.
//!
//! What a function's body names is known as far as its words tell: a name that is put together at run time is not seen.

use super::{Finding, Looks};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::collections::BTreeSet;
use tokio_postgres::Row;

/// Views that read the tables, themselves or through other views.
const VIEWS: &str = ", uses(oid) AS (
        SELECT oid FROM tree
        UNION SELECT r.ev_class FROM uses u JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = u.oid
                 AND d.classid = 'pg_rewrite'::regclass
          JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm'))
    SELECT n.nspname::text, c.relname::text, c.relkind::text, pg_get_viewdef(c.oid)
      FROM uses u JOIN pg_class c ON c.oid = u.oid AND c.relkind IN ('v', 'm') JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname <> 'segue'
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
     ORDER BY c.oid";

/// Which of `names`, quoted for SQL, `find` (an SQL function) finds on the target.
async fn present(looks: &Looks<'_>, find: &str, names: &[String]) -> Outcome<BTreeSet<String>> {
    let sql = format!("SELECT w FROM unnest($1::text[]) w WHERE {find}(w) IS NOT NULL");
    let rows = looks.client(Side::Target).query(&sql, &[&names]).await;
    let rows = rows
        .map_err(|e| crate::error::fault_of(&e).during("looking for what uses the tables on the target"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A view of the tables that is not there on the target: whoever reads it fails after the switch. One that joins them with
/// tables that stay is told as such: the target cannot have it.
pub(super) async fn views(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let rows = looks.ask_tables(Side::Source, VIEWS).await?;
    let name = |row: &Row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
    let joined: BTreeSet<QualifiedName> =
        looks.ask_tables(Side::Source, JOINED_VIEWS).await?.iter().map(name).collect();
    let names: Vec<String> = rows.iter().map(|row| name(row).sql()).collect();
    let there = present(looks, "to_regclass", &names).await?;
    let missing = rows.iter().filter(|row| !there.contains(&name(row).sql()) && !joined.contains(&name(row)));
    let finding = |row: &Row| {
        let name = name(row);
        let (kind, words) = match row.get::<_, &str>(2) {
            "m" => ("MATERIALIZED VIEW", "materialized view"),
            _ => ("VIEW", "view"),
        };
        let what = format!("the {words} {name} reads the tables, and is not there on the target");
        let remedy = format!("CREATE {kind} {} AS {}", name.sql(), row.get::<_, &str>(3));
        Finding::warn(Side::Target, what, remedy).about(name)
    };
    Ok(missing.map(finding).collect())
}

/// So many functions are looked through.
const FUNCTIONS_MAX: i64 = 20_000;

/// Functions that people wrote: name with arguments, whole definition, body.
async fn functions(looks: &Looks<'_>) -> Outcome<Vec<Row>> {
    let sql = format!(
        "SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.prosrc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
           JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('c', 'internal')
          WHERE p.prokind IN ('f', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'segue')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
          ORDER BY p.oid LIMIT {FUNCTIONS_MAX}"
    );
    looks.ask(Side::Source, &sql).await
}

/// The tables as words to look for.
struct Names {
    migrated: BTreeSet<String>,
    others: BTreeSet<String>,
}

async fn names(looks: &Looks<'_>) -> Outcome<Names> {
    let sql = "SELECT c.relname::text, c.oid IN (SELECT oid FROM root) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND n.nspname !~ '^pg_'
            AND n.nspname NOT IN ('information_schema', 'segue')";
    let (mut migrated, mut others) = (BTreeSet::new(), BTreeSet::new());
    for row in looks.ask_tables(Side::Source, sql).await? {
        let name: String = row.get::<_, String>(0).to_lowercase();
        if row.get(1) {
            migrated.insert(name)
        } else {
            others.insert(name)
        };
    }
    let others = others.difference(&migrated).cloned().collect();
    Ok(Names { migrated, others })
}

impl Names {
    /// The tables that a text names, as whole words: those that move, and others.
    fn in_text(&self, text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let text = text.to_lowercase();
        let words: BTreeSet<&str> =
            text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).collect();
        // The names, and not the words: these end with the text.
        fn among<'n>(names: &'n BTreeSet<String>, words: &BTreeSet<&str>) -> BTreeSet<&'n str> {
            words.iter().filter_map(|word| names.get(*word)).map(String::as_str).collect()
        }
        (among(&self.migrated, &words), among(&self.others, &words))
    }
}

/// Functions of triggers that are made along with the tables which the target lacks.
async fn made_along(looks: &Looks<'_>) -> Outcome<BTreeSet<String>> {
    if !looks.asked.creates_missing {
        return Ok(BTreeSet::new());
    }
    let sql = "SELECT DISTINCT p.oid::regprocedure::text FROM tree t JOIN pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal
           JOIN pg_proc p ON p.oid = g.tgfoid";
    Ok(looks.ask_unmade(sql).await?.iter().map(|row| row.get(0)).collect())
}

/// A function that works on the tables and is not there on the target: whoever calls it fails after the switch. One that names
/// tables that stay, too, is told as such.
pub(super) async fn absent_functions(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (rows, names) = (functions(looks).await?, names(looks).await?);
    let is_theirs = |row: &&Row| {
        let (moving, staying) = names.in_text(row.get(2));
        !moving.is_empty() && staying.is_empty()
    };
    let uses: Vec<&Row> = rows.iter().filter(is_theirs).collect();
    let signatures: Vec<String> = uses.iter().map(|row| row.get(0)).collect();
    let mut there = present(looks, "to_regprocedure", &signatures).await?;
    there.extend(made_along(looks).await?);
    let missing = uses.into_iter().filter(|row| !there.contains(row.get::<_, &str>(0)));
    let finding = |row: &Row| {
        let signature: &str = row.get(0);
        let tables = list(&names.in_text(row.get(2)).0);
        let what = format!("the function {signature} names {tables}, and is not there on the target");
        Finding::warn(Side::Target, what, format!("{};", row.get::<_, &str>(1).trim_end())).about(signature)
    };
    Ok(missing.map(finding).collect())
}

fn list(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

/// So many of the server's remembered statements are looked through, those with most calls first.
const STATEMENTS_MAX: i64 = 5_000;

/// Views that join the tables with others, and with which.
const JOINED_VIEWS: &str = "SELECT n.nspname::text, v.relname::text, string_agg(DISTINCT format('%I.%I', sn.nspname, s.relname), ', ')
           FROM tree t JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.classid = 'pg_rewrite'::regclass
           JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
           JOIN pg_namespace n ON n.oid = v.relnamespace
           JOIN pg_depend o ON o.classid = 'pg_rewrite'::regclass AND o.objid = r.oid AND o.refclassid = 'pg_class'::regclass
           JOIN pg_class s ON s.oid = o.refobjid AND s.relkind IN ('r', 'p', 'f') AND s.oid NOT IN (SELECT oid FROM tree)
           JOIN pg_namespace sn ON sn.oid = s.relnamespace AND sn.nspname NOT IN ('pg_catalog', 'information_schema', 'segue')
          GROUP BY 1, 2 ORDER BY 1, 2";

/// A statement that joins a table that moves with one that stays has no home after the switch: no server has both.
pub(super) async fn joins(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    let remedy = "list those tables in the spec too, or take the statement apart: after the switch neither server has all of them";
    for row in looks.ask_tables(Side::Source, JOINED_VIEWS).await? {
        let view = QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let what = format!(
            "the view {view} joins the tables with {}, which are not migrated",
            row.get::<_, &str>(2)
        );
        found.push(Finding::warn(Side::Source, what, remedy).about(view));
    }
    let names = names(looks).await?;
    for row in functions(looks).await? {
        let (moving, staying) = names.in_text(row.get(2));
        if !moving.is_empty() && !staying.is_empty() {
            let signature: &str = row.get(0);
            let what = format!(
                "the function {signature} names {} and, not migrated, {}",
                list(&moving),
                list(&staying)
            );
            found.push(Finding::warn(Side::Source, what, remedy).about(signature));
        }
    }
    found.extend(triggers(looks, &names).await?);
    for statement in remembered(looks).await? {
        let (moving, staying) = names.in_text(&statement);
        if !moving.is_empty() && !staying.is_empty() {
            let shown: String =
                statement.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
            let what =
                format!("a statement names {} and, not migrated, {}: {shown}", list(&moving), list(&staying));
            found.push(Finding::warn(Side::Source, what, remedy));
        }
    }
    Ok(found)
}

/// A trigger of the tables whose function names tables that stay: from the switch on it runs on the target. A function that names
/// both is told as such.
async fn triggers(looks: &Looks<'_>, names: &Names) -> Outcome<Vec<Finding>> {
    let sql = "SELECT n.nspname::text, c.relname::text, g.tgname::text, p.oid::regprocedure::text, p.prosrc
           FROM root t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_trigger g ON g.tgrelid = t.oid AND g.tgenabled <> 'D' AND NOT g.tgisinternal
           JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace AND pn.nspname <> 'segue'
           JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('c', 'internal')
          ORDER BY 1, 2, 3";
    let remedy =
        "list those tables in the spec too, or see that what the function does is meant on the target";
    let mut found = Vec::new();
    for row in looks.ask_tables(Side::Source, sql).await? {
        let (moving, staying) = names.in_text(row.get(4));
        if !moving.is_empty() || staying.is_empty() {
            continue;
        }
        let table = QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let (trigger, function): (&str, &str) = (row.get(2), row.get(3));
        let what = format!(
            "the trigger {trigger} of {table} runs {function}, which names, not migrated, {}: from the switch on it works with what the \
             target has of these names, or fails",
            list(&staying)
        );
        found.push(Finding::warn(Side::Source, what, remedy).about(table));
    }
    Ok(found)
}

/// What `pg_stat_statements` remembers of this database, without values; nothing where it is not loaded.
async fn remembered(looks: &Looks<'_>) -> Outcome<Vec<String>> {
    let sql = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
          WHERE e.extname = 'pg_stat_statements' AND EXISTS (SELECT FROM pg_settings WHERE name = 'pg_stat_statements.max')";
    let Some(schema) = looks.ask(Side::Source, sql).await?.first().map(|row| row.get::<_, String>(0)) else {
        return Ok(Vec::new());
    };
    let sql = format!(
        "SELECT s.query FROM {}.pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
           JOIN pg_roles r ON r.oid = s.userid
          WHERE s.query ~* '^\\s*(select|with|insert|update|delete|merge)' ORDER BY s.calls DESC LIMIT {STATEMENTS_MAX}",
        quote_ident(&schema)
    );
    Ok(looks
        .ask(Side::Source, &sql)
        .await?
        .iter()
        .filter_map(|row| row.get::<_, Option<String>>(0))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_as_whole_words() {
        let names = Names { migrated: ["orders".to_owned()].into(), others: ["stock".to_owned()].into() };
        let found = names.in_text("SELECT * FROM public.\"orders\" o JOIN Stock USING (id)");
        assert_eq!(found, (["orders"].into(), ["stock"].into()));
        assert_eq!(names.in_text("SELECT * FROM orders_old, stock2"), (BTreeSet::new(), BTreeSet::new()));
    }
}
