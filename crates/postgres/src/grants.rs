//! What a role of its own needs on each side, and no more: as statements that whoever administers the server can run.
//!
//! Only what is missing is told, so that nothing is left to say once it was run. Nothing is changed here.
//!
//! Publications and the fence's triggers need the *ownership* of the tables, or membership in the role that has it: no
//! grant on a table stands for that (`CREATE PUBLICATION`, `ALTER TABLE`). Membership in a superuser is no least privilege:
//! tables that belong to one get an owner of their own first. Event triggers are a superuser's alone: without them DDL is
//! noticed, and not refused ([`crate::ddl_guard`]).

use crate::changes::On;
use crate::error::fault_of;
use crate::traffic::TREE;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::{Client, Row};

/// The functions by which rows are marked as somebody else's.
const ORIGIN_FUNCTIONS: &[&str] = &[
    "pg_replication_origin_create(text)",
    "pg_replication_origin_drop(text)",
    "pg_replication_origin_oid(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_session_reset()",
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz)",
];

/// What one side has to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Statements, in the order in which they can be run by a superuser.
    pub statements: Vec<String>,
    /// What no statement can give, in words.
    pub remarks: Vec<String>,
}

/// The state of a role that may not be there yet.
struct Role {
    name: String,
    exists: bool,
    superuser: bool,
    replication: bool,
    bypasses_rls: bool,
}

/// What `role` lacks on this side for the `tables` of a migration, their trees included. Read in the catalogs: any role
/// may ask.
///
/// `made_as_on`: the server as on which tables are made that are not there.
pub async fn missing(
    client: &Client,
    on: On,
    role: &str,
    (tables, made_as_on): (&[QualifiedName], Option<&Client>),
) -> Outcome<Grants> {
    let during = |f: Fault| f.during(format_args!("looking what {role} may do on the {}", on.name()));
    look(client, on, role, (tables, made_as_on)).await.map_err(during)
}

async fn look(
    client: &Client,
    on: On,
    role: &str,
    (tables, made_as_on): (&[QualifiedName], Option<&Client>),
) -> Outcome<Grants> {
    let role = read_role(client, role).await?;
    let mut grants = Grants::default();
    if role.superuser {
        return Ok(grants);
    }
    let quoted = quote_ident(&role.name);
    if !role.exists {
        let replication = if on == On::Control { "" } else { " REPLICATION" };
        grants.statements.push(format!("CREATE ROLE {quoted} LOGIN{replication}"));
        grants.remarks.push(format!("set a password, in psql: \\password {quoted}"));
    } else if !role.replication && on != On::Control {
        grants.statements.push(format!("ALTER ROLE {quoted} REPLICATION"));
    }
    let database = database_rights(client, &role).await?;
    grants.statements.extend(database);
    if on == On::Control {
        return Ok(grants);
    }
    grants.statements.extend(server_rights(client, &role, &mut grants.remarks).await?);
    grants.statements.extend(table_rights(client, &role, tables, &mut grants.remarks).await?);
    grants.statements.extend(sequence_rights(client, &role, tables).await?);
    if let Some(model) = made_as_on {
        let unmade = unmade(client, tables).await?;
        let mut creation = creation_rights(client, &role, (model, &unmade)).await?;
        creation.retain(|grant| !grants.statements.contains(grant));
        grants.statements.extend(creation);
        ownership(client, &role, owners_to_be(model, &unmade).await?, &mut grants).await?;
    }
    grants.remarks.push("event triggers are a superuser's alone: DDL on the tables is noticed, and stops the migration, but is not refused".to_owned());
    Ok(grants)
}

/// Those of the tables that are not there.
async fn unmade(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<QualifiedName>> {
    let sql = "SELECT w.nspname, w.relname FROM unnest($1::text[], $2::text[]) w(nspname, relname)
        WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                           WHERE n.nspname = w.nspname AND c.relname = w.relname)";
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let rows = client.query(sql, &[&schemas, &names]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect())
}

/// What making tables as they are on `model` takes in schemas that are there; a schema that is not is made with the
/// database's right. Types and sequences are made along, but for those of extensions.
async fn creation_rights(
    client: &Client,
    role: &Role,
    (model, unmade): (&Client, &[QualifiedName]),
) -> Outcome<Vec<String>> {
    let mut found = Vec::new();
    let places: BTreeSet<&str> = unmade.iter().map(|table| table.schema.as_str()).collect();
    for (schema, is_extensions) in schemas(model, unmade).await? {
        let made_in = places.contains(schema.as_str()) || !is_extensions;
        let rights: &[&str] = if made_in { &["USAGE", "CREATE"] } else { &["USAGE"] };
        found.extend(schema_rights(client, role, &schema, rights).await?);
    }
    Ok(found)
}

/// What a role lacks of `rights` in a schema, if that is there.
async fn schema_rights(
    client: &Client,
    role: &Role,
    schema: &str,
    rights: &[&str],
) -> Outcome<Option<String>> {
    let sql = "SELECT FROM pg_namespace WHERE nspname = $1";
    if client.query_opt(sql, &[&schema]).await.map_err(|e| fault_of(&e))?.is_none() {
        return Ok(None);
    }
    // Several privileges in one question mean any of them.
    let right = |right: &&str| format!("has_schema_privilege($role, {}, '{right}')", quote_literal(schema));
    let question = rights.iter().map(right).collect::<Vec<_>>().join(" AND ");
    let lacks = !has(client, role, &question).await?;
    let (rights, schema) = (rights.join(", "), quote_ident(schema));
    Ok(lacks.then(|| format!("GRANT {rights} ON SCHEMA {schema} TO {}", quote_ident(&role.name))))
}

/// Goes on after a statement's `WITH RECURSIVE …` with `named(schema, of_extension)`: the schemas that Segue's statements
/// name for the tables whose OIDs `relations` selects. Values are cast to their columns' types by name, keys are compared
/// by operators that lie with the type below all domains, and sequences are set by name.
pub(crate) fn named_schemas(relations: &str) -> String {
    format!(
        ", kind(oid) AS (
             SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid IN ({relations})
                AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             UNION SELECT y.typbasetype FROM kind k JOIN pg_type y ON y.oid = k.oid WHERE y.typbasetype <> 0),
         named(schema, of_extension) AS (
             SELECT c.relnamespace, false FROM pg_class c WHERE c.oid IN ({relations})
             UNION SELECT y.typnamespace, EXISTS (
                     SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid IN (y.oid, y.typelem)
                        AND d.deptype = 'e')
               FROM kind k JOIN pg_type y ON y.oid = k.oid
             UNION SELECT s.relnamespace, false FROM pg_attrdef f
               JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
               JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
              WHERE f.adrelid IN ({relations}))"
    )
}

/// The schemas that statements about `tables` name, and whether they only hold what is an extension's of that. `pg_catalog`,
/// which is everybody's, is left out.
async fn schemas(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<(String, bool)>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE}{} SELECT n.nspname::text, bool_and(w.of_extension) FROM named w JOIN pg_namespace n ON n.oid = w.schema
          WHERE n.nspname <> 'pg_catalog' GROUP BY 1 ORDER BY 1",
        named_schemas("SELECT relation FROM tree")
    );
    let rows = client.query(&sql, &[&names]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Roles that own tables where these are, or will once they have an owner of their own, each with the tables' schemas.
async fn owners_to_be(
    model: &Client,
    tables: &[QualifiedName],
) -> Outcome<BTreeMap<String, BTreeSet<String>>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE} SELECT DISTINCT CASE WHEN r.rolsuper THEN current_database() || '_owner' ELSE r.rolname::text END, n.nspname::text
           FROM tree t JOIN pg_class c ON c.oid = t.relation JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_roles r ON r.oid = c.relowner"
    );
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in model.query(&sql, &[&names]).await.map_err(|e| fault_of(&e))? {
        owners.entry(row.get(0)).or_default().insert(row.get(1));
    }
    Ok(owners)
}

/// Tables are given to who owns them on the other side: to a role that is there, that may have tables in the schema, and that
/// the giver is a member of.
async fn ownership(
    client: &Client,
    role: &Role,
    owners: BTreeMap<String, BTreeSet<String>>,
    grants: &mut Grants,
) -> Outcome<()> {
    for (name, schemas) in owners.into_iter().filter(|(name, _)| *name != role.name) {
        let (owner, quoted) = (read_role(client, &name).await?, quote_ident(&name));
        if owner.superuser {
            grants.remarks.push(format!(
                "{name}, which owns tables on the source, is a superuser here: they cannot be given to it, and the gate `parity` \
                 stays red; give them another owner on the source first"
            ));
            continue;
        }
        let create = format!("CREATE ROLE {quoted} NOLOGIN");
        // Tables that are there may get the same owner.
        if !owner.exists && !grants.statements.contains(&create) {
            grants.statements.push(create);
            grants.remarks.push(format!(
                "{name} owns tables on the source, and will here: give it the attributes and the password that it has there"
            ));
        }
        let mut wanted = Vec::new();
        for schema in &schemas {
            wanted.extend(schema_rights(client, &owner, schema, &["USAGE", "CREATE"]).await?);
        }
        wanted.extend(membership(client, role, &name).await?);
        wanted.retain(|grant| !grants.statements.contains(grant));
        grants.statements.extend(wanted);
    }
    Ok(())
}

/// What makes the role a member of one that may not be there yet, unless it is.
async fn membership(client: &Client, role: &Role, owner: &str) -> Outcome<Option<String>> {
    let question = format!(
        "EXISTS (SELECT FROM pg_roles r WHERE r.rolname = {} AND pg_has_role($role, r.oid, 'USAGE'))",
        quote_literal(owner)
    );
    let grant = || format!("GRANT {} TO {}", quote_ident(owner), quote_ident(&role.name));
    Ok((!has(client, role, &question).await?).then(grant))
}

async fn read_role(client: &Client, name: &str) -> Outcome<Role> {
    let sql = "SELECT rolsuper, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1";
    let row = client.query_opt(sql, &[&name]).await.map_err(|e| fault_of(&e))?;
    let flag = |at: usize| row.as_ref().is_some_and(|row| row.get(at));
    Ok(Role {
        name: name.to_owned(),
        exists: row.is_some(),
        superuser: flag(0),
        replication: flag(1),
        bypasses_rls: flag(2),
    })
}

/// Asks whether the role has something; a role that is not there has nothing.
async fn has(client: &Client, role: &Role, question: &str) -> Outcome<bool> {
    if !role.exists {
        return Ok(false);
    }
    let sql = format!("SELECT {question}").replace("$role", &quote_literal(&role.name));
    Ok(client.query_one(&sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
}

async fn database_rights(client: &Client, role: &Role) -> Outcome<Vec<String>> {
    let row = client.query_one("SELECT current_database()::text", &[]).await.map_err(|e| fault_of(&e))?;
    let database: &str = row.get(0);
    let mut lacking = Vec::new();
    for right in ["CONNECT", "CREATE", "TEMPORARY"] {
        // What everybody may, a role that is not there yet may too.
        let whose = if role.exists { "$role" } else { "'public'" };
        let question = format!("SELECT has_database_privilege({whose}, current_database(), '{right}')")
            .replace("$role", &quote_literal(&role.name));
        if !client.query_one(&question, &[]).await.map_err(|e| fault_of(&e))?.get::<_, bool>(0) {
            lacking.push(right);
        }
    }
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let (rights, database) = (lacking.join(", "), quote_ident(database));
    Ok(vec![format!("GRANT {rights} ON DATABASE {database} TO {}", quote_ident(&role.name))])
}

/// What holds for the whole server: origins, the replica role, seeing what others do.
async fn server_rights(client: &Client, role: &Role, remarks: &mut Vec<String>) -> Outcome<Vec<String>> {
    let quoted = quote_ident(&role.name);
    let mut found = Vec::new();
    let mut functions = Vec::new();
    for function in ORIGIN_FUNCTIONS {
        let question = format!("has_function_privilege($role, {}, 'EXECUTE')", quote_literal(function));
        if !has(client, role, &question).await? {
            functions.push(*function);
        }
    }
    if !functions.is_empty() {
        found.push(format!("GRANT EXECUTE ON FUNCTION {} TO {quoted}", functions.join(", ")));
    }
    let version = "SELECT current_setting('server_version_num')::int / 10000";
    let major: i32 = client.query_one(version, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    if major < 15 {
        remarks.push(format!(
            "PostgreSQL {major} lets superusers alone set session_replication_role, without which the tables' triggers and \
             foreign keys would fire: use one, or the role of the managed service that may"
        ));
    } else if !has(client, role, "has_parameter_privilege($role, 'session_replication_role', 'SET')").await? {
        found.push(format!("GRANT SET ON PARAMETER session_replication_role TO {quoted}"));
    }
    if !has(client, role, "pg_has_role($role, 'pg_read_all_stats', 'USAGE')").await? {
        found.push(format!("GRANT pg_read_all_stats TO {quoted}"));
    }
    Ok(found)
}

/// A table of the tree, as far as rights are concerned.
struct Owned {
    name: String,
    schema: String,
    owner: String,
    by_superuser: bool,
    forced_rls: bool,
}

const OWNED: &str = "
    SELECT format('%I.%I', n.nspname, c.relname), n.nspname::text, r.rolname::text, r.rolsuper,
           c.relrowsecurity AND c.relforcerowsecurity
      FROM tree t JOIN pg_class c ON c.oid = t.relation JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_roles r ON r.oid = c.relowner
     ORDER BY 1";

async fn table_rights(
    client: &Client,
    role: &Role,
    tables: &[QualifiedName],
    remarks: &mut Vec<String>,
) -> Outcome<Vec<String>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let rows = client.query(&format!("{TREE} {OWNED}"), &[&names]).await.map_err(|e| fault_of(&e))?;
    let owned: Vec<Owned> = rows
        .iter()
        .map(|row| Owned {
            name: row.get(0),
            schema: row.get(1),
            owner: row.get(2),
            by_superuser: row.get(3),
            forced_rls: row.get(4),
        })
        .collect();
    let quoted = quote_ident(&role.name);
    let mut found = Vec::new();
    for (schema, _) in schemas(client, tables).await? {
        found.extend(schema_rights(client, role, &schema, &["USAGE"]).await?);
    }
    found.extend(given_an_owner(client, &owned, remarks).await?);
    for owner in owners(client, &owned).await? {
        found.extend(membership(client, role, &owner).await?);
    }
    if owned.iter().any(|table| table.forced_rls) && !role.bypasses_rls {
        found.push(format!("ALTER ROLE {quoted} BYPASSRLS"));
    }
    Ok(found)
}

/// Roles that own tables, those that get an owner of their own included.
async fn owners(client: &Client, owned: &[Owned]) -> Outcome<BTreeSet<String>> {
    let mut names: BTreeSet<String> =
        owned.iter().filter(|table| !table.by_superuser).map(|table| table.owner.clone()).collect();
    if owned.iter().any(|table| table.by_superuser) {
        names.insert(owner_to_be(client).await?);
    }
    // The role itself may be among them, and is a member of itself.
    Ok(names)
}

/// The name of a role that can own the tables of this database.
async fn owner_to_be(client: &Client) -> Outcome<String> {
    let row = client.query_one("SELECT current_database() || '_owner'", &[]).await;
    Ok(row.map_err(|e| fault_of(&e))?.get(0))
}

/// Tables of a superuser's get an owner that is none. Sequences that belong to their columns go along.
async fn given_an_owner(client: &Client, owned: &[Owned], remarks: &mut Vec<String>) -> Outcome<Vec<String>> {
    let of_superusers: BTreeMap<&str, Vec<&Owned>> =
        owned.iter().filter(|table| table.by_superuser).fold(BTreeMap::new(), |mut all, table| {
            all.entry(table.schema.as_str()).or_default().push(table);
            all
        });
    if of_superusers.is_empty() {
        return Ok(Vec::new());
    }
    let owner = owner_to_be(client).await?;
    let quoted = quote_ident(&owner);
    let there = read_role(client, &owner).await?;
    if there.superuser {
        let what = format!(
            "the role {owner}, which would own the tables, is a superuser, and so would be its members"
        );
        return Err(Fault::operator(
            "SEGUE-PRIVILEGE",
            what,
            "give these tables an owner that is none, then ask again",
        ));
    }
    let mut found = Vec::new();
    if !there.exists {
        found.push(format!("CREATE ROLE {quoted} NOLOGIN"));
    }
    // Readers wait behind a lock that is waited for.
    found.push("SET lock_timeout = '2s'".to_owned());
    for (schema, tables) in &of_superusers {
        found.push(format!("GRANT USAGE, CREATE ON SCHEMA {} TO {quoted}", quote_ident(schema)));
        found.extend(tables.iter().map(|table| format!("ALTER TABLE {} OWNER TO {quoted}", table.name)));
    }
    remarks.push(format!(
        "tables that belong to a superuser get the owner {owner}; each is locked for a moment, and a statement that fails for want of \
         a lock can be run again. Roles that use them by grants go on as they are; roles that do so as members of the former owner \
         need GRANT {quoted} TO them"
    ));
    Ok(found)
}

const SEQUENCES: &str = "
    SELECT DISTINCT format('%I.%I', n.nspname, s.relname) AS name, s.oid
      FROM unnest($1::text[]) t
      JOIN pg_attrdef d ON d.adrelid = to_regclass(t)
      JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass
      JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
      JOIN pg_namespace n ON n.oid = s.relnamespace
     WHERE NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_class'::regclass AND o.objid = s.oid
                          AND o.refclassid = 'pg_class'::regclass AND o.deptype IN ('a', 'i'))
     ORDER BY 1";

/// Sequences that no column owns: who owns the table does not own them.
async fn sequence_rights(client: &Client, role: &Role, tables: &[QualifiedName]) -> Outcome<Vec<String>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let rows: Vec<Row> = client.query(SEQUENCES, &[&names]).await.map_err(|e| fault_of(&e))?;
    let mut found = Vec::new();
    for row in &rows {
        let (name, oid): (&str, u32) = (row.get(0), row.get(1));
        // Several privileges in one question mean any of them.
        let right = |right| format!("has_sequence_privilege($role, {oid}::oid, '{right}')");
        if !has(client, role, &format!("{} AND {}", right("SELECT"), right("UPDATE"))).await? {
            found.push(format!("GRANT SELECT, UPDATE ON SEQUENCE {name} TO {}", quote_ident(&role.name)));
        }
    }
    Ok(found)
}
