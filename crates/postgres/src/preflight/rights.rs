//! What roles may do: Segue's own beyond what `segue run` asks for, and the application's on the other side.

use super::{Finding, Looks, Verdict};
use crate::definition::settled;
use crate::grants::named_schemas;
use crate::health;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};

/// The fence is a trigger on every table of the target, which only an owner may make; `segue run` stops there.
pub(super) async fn privileges(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT DISTINCT r.rolname::text, current_user::text, r.rolsuper,
                 (SELECT string_agg(format('%I.%I', n.nspname, o.relname), ', ' ORDER BY 1) FROM
                   (SELECT x.relnamespace, x.relname FROM tree u JOIN pg_class x ON x.oid = u.oid AND x.relowner = c.relowner LIMIT 5) o
                   JOIN pg_namespace n ON n.oid = o.relnamespace)
           FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_roles r ON r.oid = c.relowner
          WHERE NOT pg_has_role(c.relowner, 'USAGE')";
    let rows = looks.ask_tables(Side::Target, sql).await?;
    let finding = |row: &tokio_postgres::Row| {
        let (owner, role, is_superuser, tables): (&str, &str, bool, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let what = format!(
            "tables of the target belong to {owner} ({tables}), and Segue's role {role} is no member of it: it could not fence them"
        );
        let remedy = if is_superuser {
            // A member of a superuser is one.
            "`segue plan --grants=target` prints what gives them an owner that is no superuser".to_owned()
        } else {
            format!("GRANT {} TO {};", quote_ident(owner), quote_ident(role))
        };
        Finding { verdict: Verdict::Refuse, ..Finding::warn(Side::Target, what, remedy).about(owner) }
    };
    let mut found: Vec<Finding> = rows.iter().map(finding).collect();
    if looks.asked.creates_missing {
        found.extend(owners_to_be(looks).await?);
    }
    found.extend(schemas(looks).await?);
    Ok(found)
}

/// Tables, types and sequences are named with their schemas, on either side: with a way back both are written to.
async fn schemas(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = format!(
        "{} SELECT DISTINCT n.nspname::text, current_user::text FROM named w JOIN pg_namespace n ON n.oid = w.schema
          WHERE NOT has_schema_privilege(n.oid, 'USAGE') ORDER BY 1",
        named_schemas("SELECT oid FROM tree")
    );
    let mut found = Vec::new();
    for side in Side::ALL {
        for row in looks.ask_tables(side, &sql).await? {
            let (schema, role): (&str, &str) = (row.get(0), row.get(1));
            let what = format!(
                "Segue's role {role} may not use the schema {schema} of the {side}, in which tables are, or types or sequences of \
                 their columns: statements that name them would be refused"
            );
            let remedy = format!("GRANT USAGE ON SCHEMA {} TO {};", quote_ident(schema), quote_ident(role));
            found.push(Finding::warn(side, what, remedy).about(schema));
        }
    }
    Ok(found)
}

/// Tables that are made on the target are given to who owns them on the source. Where that fails they are copied all the same,
/// and the writes stay where they are.
async fn owners_to_be(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT DISTINCT r.rolname::text, n.nspname::text FROM tree t JOIN pg_class c ON c.oid = t.oid
           JOIN pg_roles r ON r.oid = c.relowner JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2";
    let owners = looks.ask_unmade(sql).await?;
    let own = "SELECT rolname::text, rolsuper FROM pg_roles WHERE rolname = current_user";
    let Some(own) = looks.ask(Side::Target, own).await?.pop() else { return Ok(Vec::new()) };
    let (role, is_superuser): (&str, bool) = (own.get(0), own.get(1));
    let roles = "SELECT r.rolname::text, pg_has_role(r.oid, 'USAGE'), n.nspname::text,
             has_schema_privilege(r.oid, n.oid, 'CREATE') FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname !~ '^pg_'";
    let (mut known, mut places) = (BTreeMap::new(), BTreeMap::new());
    for row in looks.ask(Side::Target, roles).await? {
        let name: String = row.get(0);
        known.insert(name.clone(), row.get::<_, bool>(1));
        places.insert(
            (name, row.get::<_, Option<String>>(2).unwrap_or_default()),
            row.get::<_, Option<bool>>(3),
        );
    }
    let mut found = Vec::new();
    let mut say = |owner: &str, why: String, remedy: String| {
        let what = format!(
            "tables that are made on the target belong to {owner} on the source, {why}: they would stay Segue's own, and the gate \
             `parity` red"
        );
        found.push(Finding::warn(Side::Target, what, remedy).about(owner));
    };
    let mut told = BTreeSet::new();
    for row in &owners {
        let (owner, schema): (&str, &str) = (row.get(0), row.get(1));
        let (quoted, is_first) = (quote_ident(owner), told.insert(owner));
        match known.get(owner) {
            None if is_first => {
                let member = format!(" GRANT {quoted} TO {};", quote_ident(role));
                let member = if is_superuser { "" } else { &member };
                let remedy = format!(
                    "CREATE ROLE {quoted};{member} -- with the attributes and the password it has on the source"
                );
                say(owner, "which is not there on the target".to_owned(), remedy);
            }
            Some(false) if is_first => {
                let remedy = "`segue plan --grants` prints what makes it one, and gives tables of a superuser another owner";
                say(owner, format!("and Segue's role {role} is no member of it"), remedy.to_owned());
            }
            None | Some(_) => {}
        }
        let place = places.get(&(owner.to_owned(), schema.to_owned())).copied().flatten();
        if !is_superuser && place == Some(false) {
            let remedy = format!("GRANT USAGE, CREATE ON SCHEMA {} TO {quoted};", quote_ident(schema));
            say(owner, format!("which may have none in the schema {schema} there"), remedy);
        }
    }
    Ok(found)
}

/// Who may do what with the tables moves with the schema, not with the rows; the application's first statement after the
/// switch would be refused.
pub(super) async fn grants(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT t.no, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE r.rolname::text END AS grantee, a.privilege_type
           FROM root t JOIN pg_class c ON c.oid = t.oid
          CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
           LEFT JOIN pg_roles r ON r.oid = a.grantee
          WHERE a.grantee <> c.relowner AND (a.grantee = 0 OR r.rolname IS NOT NULL)
            AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
          ORDER BY 1, 2, 3";
    let mut wanted: BTreeMap<(i64, String), BTreeSet<String>> = BTreeMap::new();
    for row in looks.ask_pairs(Side::Source, sql).await? {
        wanted.entry((row.get(0), row.get(1))).or_default().insert(row.get(2));
    }
    let mut owners = BTreeSet::new();
    let owner = "SELECT t.no, pg_get_userbyid(c.relowner)::text FROM root t JOIN pg_class c ON c.oid = t.oid";
    let [here, there] = looks.ask_both(owner).await?;
    let owner_of = |rows: &[tokio_postgres::Row]| -> BTreeMap<i64, String> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let (here, there) = (owner_of(&here), owner_of(&there));
    for (no, owner) in &there {
        owners.insert((*no, owner.clone()));
    }
    for (no, owner) in here.iter().filter(|(no, owner)| there.get(no) != Some(owner)) {
        let all = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"].map(str::to_owned);
        wanted.entry((*no, owner.clone())).or_default().extend(all);
    }
    for row in looks.ask_pairs(Side::Target, sql).await? {
        if let Some(lacks) = wanted.get_mut(&(row.get(0), row.get(1))) {
            lacks.remove(row.get::<_, &str>(2));
        }
    }
    let known: BTreeSet<String> = looks
        .ask(Side::Target, "SELECT rolname::text FROM pg_roles")
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mighty = "SELECT rolname::text FROM pg_roles WHERE rolsuper";
    let mighty: BTreeSet<String> =
        looks.ask(Side::Target, mighty).await?.iter().map(|row| row.get(0)).collect();
    let mut found = Vec::new();
    for (key @ (no, grantee), lacks) in &wanted {
        if lacks.is_empty() || owners.contains(key) || mighty.contains(grantee) {
            continue;
        }
        let table = looks.table(Side::Target, *no);
        let privileges = lacks.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let is_known = grantee == "PUBLIC" || known.contains(grantee);
        let to = if grantee == "PUBLIC" { grantee.clone() } else { quote_ident(grantee) };
        let grant = format!("GRANT {privileges} ON {} TO {to};", table.sql());
        let (what, remedy) = if is_known {
            (format!("{grantee} may {privileges} on {table} on the source, and not on the target"), grant)
        } else {
            (
                format!(
                    "the role {grantee}, which may {privileges} on {table} on the source, is not there on the target"
                ),
                format!(
                    "CREATE ROLE {to}; {grant} -- with the attributes and the password it has on the source"
                ),
            )
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(table));
    }
    Ok(found)
}

/// A policy of a table on one side.
struct Policy {
    create: String,
    form: String,
}

/// Whoever is kept from other people's rows by a policy sees them after the switch, if it is not there.
pub(super) async fn row_security(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT t.no, c.relrowsecurity, c.relforcerowsecurity,
                ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY p.polname) AS names,
                ARRAY(SELECT concat_ws(' ', CASE WHEN p.polpermissive THEN 'AS PERMISSIVE' ELSE 'AS RESTRICTIVE' END,
                        CASE p.polcmd WHEN 'r' THEN 'FOR SELECT' WHEN 'a' THEN 'FOR INSERT' WHEN 'w' THEN 'FOR UPDATE'
                                      WHEN 'd' THEN 'FOR DELETE' ELSE 'FOR ALL' END,
                        'TO ' || (SELECT string_agg(CASE u WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(u)) END, ', ' ORDER BY u)
                                    FROM unnest(p.polroles) u),
                        'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
                        'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
                        FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY p.polname) AS forms
           FROM root t JOIN pg_class c ON c.oid = t.oid";
    let [here, there] = looks.ask_both(sql).await?;
    let mut found = Vec::new();
    for source in &here {
        let no: i64 = source.get("no");
        let Some(target) = there.iter().find(|row| row.get::<_, i64>("no") == no) else { continue };
        let table = looks.table(Side::Target, no);
        for (flag, words) in [("relrowsecurity", "ENABLE"), ("relforcerowsecurity", "FORCE")] {
            if source.get::<_, bool>(flag) && !target.get::<_, bool>(flag) {
                let what = format!(
                    "row-level security is on for {table} on the source only ({words}): after the switch roles would see rows that \
                     are kept from them now"
                );
                let remedy = format!("ALTER TABLE {} {words} ROW LEVEL SECURITY;", table.sql());
                found.push(Finding::warn(Side::Target, what, remedy).about(&table));
            }
        }
        let there = policies(target, &table);
        for (name, policy) in policies(source, &table) {
            let what = match there.get(&name) {
                Some(other) if other.form == policy.form => continue,
                Some(_) => format!("the policy {name} of {table} is another one on the target"),
                None => format!("the policy {name} of {table} is not there on the target"),
            };
            let drop = if there.contains_key(&name) {
                format!("DROP POLICY {} ON {}; ", quote_ident(&name), table.sql())
            } else {
                String::new()
            };
            found.push(Finding::warn(Side::Target, what, drop + &policy.create).about(&table));
        }
    }
    Ok(found)
}

fn policies(row: &tokio_postgres::Row, table: &QualifiedName) -> BTreeMap<String, Policy> {
    let (names, forms): (Vec<String>, Vec<String>) = (row.get("names"), row.get("forms"));
    let policy = |(name, form): (String, String)| {
        let form = settled(&form);
        let create = format!("CREATE POLICY {} ON {} {form};", quote_ident(&name), table.sql());
        (name, Policy { create, form })
    };
    names.into_iter().zip(forms).map(policy).collect()
}

/// DDL that a stream cannot follow is best refused beforehand, which takes event triggers; without them it stops the
/// migration when it is noticed.
pub(super) async fn ddl_guard(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for side in looks.sending().filter(|_| looks.asked.guard_ddl) {
        // The roles of managed services that may make them.
        let sql = "SELECT r.rolsuper OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('rds_superuser', 'cloudsqlsuperuser',
                       'alloydbsuperuser', 'azure_pg_admin') AND pg_has_role(m.oid, 'USAGE')), r.rolname::text,
                   coalesce(current_setting('event_triggers', true), 'on') = 'on'
              FROM pg_roles r WHERE r.rolname = current_user";
        for row in looks.ask(side, sql).await? {
            let (may, role, runs): (bool, &str, bool) = (row.get(0), row.get(1), row.get(2));
            if !may {
                let what = format!(
                    "the role {role} may not make event triggers on the {side}: DDL on the tables is not refused, but noticed, and \
                     stops the migration then"
                );
                let remedy = "keep DDL away from the tables meanwhile; `guard: { ddl: false }` in the spec says that you do";
                found.push(Finding::warn(side, what, remedy).about(role));
            }
            if !runs {
                let what = format!(
                    "the {side} runs no event triggers (event_triggers = off): DDL on the tables is not refused"
                );
                let remedy = "ALTER SYSTEM SET event_triggers = on; SELECT pg_reload_conf();";
                found.push(Finding::warn(side, what, remedy).about("event_triggers"));
            }
        }
    }
    Ok(found)
}

/// What other sessions do, and how far replicas are, is hidden from an ordinary role: gates that ask for it stay red.
pub(super) async fn visibility(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for side in Side::ALL {
        let Some(words) = health::blindness(looks.client(side)).await? else { continue };
        let (what, remedy) = words.split_once(": ").unwrap_or((&words, ""));
        let what =
            format!("{what} on the {side}: transactions in the way cannot be named, and gates stay red");
        found.push(Finding::warn(side, what, format!("{remedy};")));
    }
    Ok(found)
}
