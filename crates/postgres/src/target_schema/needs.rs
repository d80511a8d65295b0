//! What tables need to be made at all: the types of their columns, the functions of their defaults and triggers, schemas,
//! extensions, the tables that their foreign keys refer to. Found by the server's own record of dependencies.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use std::collections::HashSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

/// Something that the tables need, beside themselves and what belongs to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// The catalog and the object, as an archive names it.
    pub(super) object: (u32, u32),
    /// As DROP calls it, but for its case: `function`, `type`, `schema`, `extension`, `table`, …
    pub(super) kind: String,
    /// Its name as SQL, with its arguments.
    pub(super) identity: String,
    /// The same in parts, for the other server to find it by.
    address: (Vec<String>, Vec<String>),
    /// A relation that is not made along: a table, a view, a sequence.
    pub(super) relation: Option<Relation>,
    /// It is made of the tables' rows, so after them.
    pub(super) of_rows: bool,
}

/// What a needed relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// A sequence of its own, or of a table that is not moved.
    Sequence,
    /// Anything with rows.
    Rows,
}

const NEEDS: &str = "
    WITH RECURSIVE rel AS (SELECT unnest($1::oid[]) AS oid),
    member AS (SELECT d.classid, d.objid, d.refobjid AS extension FROM pg_depend d
                WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass),
    need(classid, objid) AS (
        (SELECT 'pg_class'::regclass::oid, oid FROM rel
         UNION SELECT 'pg_attrdef'::regclass::oid, d.oid FROM pg_attrdef d JOIN rel ON d.adrelid = rel.oid
         UNION SELECT 'pg_constraint'::regclass::oid, k.oid FROM pg_constraint k JOIN rel ON k.conrelid = rel.oid
         UNION SELECT 'pg_class'::regclass::oid, i.indexrelid FROM pg_index i JOIN rel ON i.indrelid = rel.oid
         UNION SELECT 'pg_trigger'::regclass::oid, t.oid FROM pg_trigger t JOIN rel ON t.tgrelid = rel.oid
                 JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace n ON n.oid = f.pronamespace
                WHERE NOT t.tgisinternal AND n.nspname <> 'segue'
         UNION SELECT 'pg_policy'::regclass::oid, p.oid FROM pg_policy p JOIN rel ON p.polrelid = rel.oid
         UNION SELECT 'pg_statistic_ext'::regclass::oid, s.oid FROM pg_statistic_ext s JOIN rel ON s.stxrelid = rel.oid
         UNION SELECT 'pg_rewrite'::regclass::oid, r.oid FROM pg_rewrite r JOIN rel ON r.ev_class = rel.oid
                WHERE r.ev_type <> '1')
        UNION
        SELECT x.classid, x.objid FROM need n, LATERAL (
            -- what the server was made with is everywhere
            SELECT d.refclassid, d.refobjid FROM pg_depend d
             WHERE d.classid = n.classid AND d.objid = n.objid AND d.deptype IN ('n', 'a', 'i') AND d.refobjid >= 16384
             UNION ALL
            SELECT 'pg_constraint'::regclass::oid, k.oid FROM pg_constraint k
             WHERE n.classid = 'pg_type'::regclass AND k.contypid = n.objid
             UNION ALL
            SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c
             WHERE n.classid = 'pg_type'::regclass AND c.reltype = n.objid AND c.relkind = 'c') x(classid, objid)
         WHERE NOT EXISTS (SELECT FROM member m WHERE m.classid = n.classid AND m.objid = n.objid)),
    wanted AS (
        SELECT 'pg_extension'::regclass::oid AS classid, m.extension AS objid FROM need n JOIN member m USING (classid, objid)
        UNION
        SELECT n.classid, n.objid FROM need n LEFT JOIN member m USING (classid, objid)
               LEFT JOIN pg_class c ON n.classid = 'pg_class'::regclass AND c.oid = n.objid
               LEFT JOIN pg_type t ON n.classid = 'pg_type'::regclass AND t.oid = n.objid
               LEFT JOIN pg_class row ON row.oid = t.typrelid
         WHERE m.objid IS NULL
           AND n.classid NOT IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_trigger'::regclass,
                                 'pg_policy'::regclass, 'pg_statistic_ext'::regclass, 'pg_rewrite'::regclass)
           AND (c.oid IS NULL OR c.relkind NOT IN ('i', 'I', 'c', 't') AND c.oid NOT IN (SELECT oid FROM rel)
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                   AND c.relkind = 'S' AND d.refclassid = 'pg_class'::regclass
                                   AND d.deptype IN ('a', 'i') AND d.refobjid IN (SELECT oid FROM rel)))
           -- made along with another
           AND (t.oid IS NULL OR t.typtype <> 'm' AND (row.oid IS NULL OR row.relkind = 'c')
                AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)))
    SELECT w.classid, w.objid, o.type, o.identity, a.object_names, a.object_args,
           (SELECT c.relkind::text FROM pg_class c WHERE w.classid = 'pg_class'::regclass AND c.oid = w.objid) AS relkind,
           EXISTS (SELECT FROM pg_depend d WHERE w.classid = 'pg_proc'::regclass AND d.classid = w.classid
                      AND d.objid = w.objid
                      AND (d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM rel)
                           OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN
                              (SELECT unnest(ARRAY[t.oid, t.typarray]) FROM pg_type t WHERE t.typrelid IN (SELECT oid FROM rel))))
               AS of_rows
      FROM wanted w, LATERAL pg_identify_object(w.classid, w.objid, 0) o,
           LATERAL pg_identify_object_as_address(w.classid, w.objid, 0) a
     ORDER BY o.type, o.identity";

/// Everything that the source's `relations` need.
pub(super) async fn of(source: &Client, relations: &[u32]) -> Outcome<Vec<Need>> {
    let rows = source.query(NEEDS, &[&relations]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking what the tables need"))?;
    let need = |row: &Row| {
        let relation = row.get::<_, Option<&str>>("relkind").map(|kind| match kind {
            "S" => Relation::Sequence,
            _ => Relation::Rows,
        });
        Need {
            object: (row.get("classid"), row.get("objid")),
            kind: row.get("type"),
            identity: row.get("identity"),
            address: (row.get("object_names"), row.get::<_, Option<_>>("object_args").unwrap_or_default()),
            relation,
            of_rows: row.get("of_rows"),
        }
    };
    Ok(rows.iter().map(need).collect())
}

/// The objects, as an archive names them, of which `relations` are made before they have rows: themselves, their defaults,
/// and the sequences of their columns.
pub(super) async fn belonging(source: &Client, relations: &[u32]) -> Outcome<HashSet<(u32, u32)>> {
    let sql = "WITH rel AS (SELECT unnest($1::oid[]) AS oid)
        SELECT 'pg_class'::regclass::oid, oid FROM rel
         UNION ALL SELECT 'pg_attrdef'::regclass::oid, d.oid FROM pg_attrdef d JOIN rel ON d.adrelid = rel.oid
         UNION ALL SELECT d.classid, d.objid FROM rel JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass
                      AND d.refobjid = rel.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
                      JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'";
    let rows = source.query(sql, &[&relations]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking what the tables are made of"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Every relation with rows, or that shows rows, beside `relations`; not the server's, an extension's or Segue's.
pub(super) async fn beside(source: &Client, relations: &[u32]) -> Outcome<Vec<QualifiedName>> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
           AND n.nspname NOT IN ('information_schema', 'segue')
           AND NOT EXISTS (SELECT FROM unnest($1::oid[]) w WHERE w = c.oid)
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                              AND d.deptype = 'e')";
    let rows = source.query(sql, &[&relations]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("listing what is beside the tables"))?;
    let name = |row: &Row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
    Ok(rows.iter().map(name).collect())
}

/// Those of `needs` that the target does not have. Must not be asked within a transaction: not to find one is an error.
pub(super) async fn missing(target: &Client, needs: Vec<Need>) -> Outcome<Vec<Need>> {
    let mut missing = Vec::new();
    for need in needs {
        let (names, arguments) = &need.address;
        let sql = "SELECT FROM pg_get_object_address($1, $2, $3)";
        match target.query_one(sql, &[&need.kind, names, arguments]).await {
            Ok(_) => {}
            Err(error) if error.code().is_some_and(says_missing) => missing.push(need),
            Err(error) => {
                let step = format!("looking for the {} {} on the target", need.kind, need.identity);
                return Err(fault_of(&error).during(step));
            }
        }
    }
    Ok(missing)
}

fn says_missing(code: &SqlState) -> bool {
    [
        SqlState::UNDEFINED_OBJECT,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INVALID_SCHEMA_NAME,
    ]
    .contains(code)
}

/// Who owns something that is made along, who may use it, and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attire {
    /// In words.
    pub(super) what: String,
    /// The statements.
    pub(super) remedy: Vec<String>,
}

/// Owners, privileges and comments of `needs`, as the source has them. What anybody may do by default is said only where it
/// was changed.
pub(super) async fn attire(source: &Client, needs: &[Need]) -> Outcome<Vec<Attire>> {
    let sql = "WITH had AS (
            SELECT 'pg_namespace'::regclass::oid AS classid, oid, nspowner AS owner, nspacl AS acl FROM pg_namespace
            UNION ALL SELECT 'pg_type'::regclass::oid, oid, typowner, typacl FROM pg_type
            UNION ALL SELECT 'pg_proc'::regclass::oid, oid, proowner, proacl FROM pg_proc
            UNION ALL SELECT 'pg_class'::regclass::oid, oid, relowner, relacl FROM pg_class WHERE relkind = 'S')
        SELECT quote_ident(pg_get_userbyid(h.owner)), h.acl IS NOT NULL,
               ARRAY(SELECT x.privilege_type || ' TO ' ||
                            CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END ||
                            CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
                       FROM aclexplode(h.acl) x WHERE x.grantee <> h.owner ORDER BY 1),
               obj_description(h.oid, (SELECT c.relname FROM pg_class c WHERE c.oid = h.classid))
          FROM had h WHERE h.classid = $1 AND h.oid = $2";
    let mut all = Vec::new();
    for Need { kind, identity, object: (class, oid), .. } in needs {
        let row = source.query_opt(sql, &[class, oid]).await;
        let Some(row) = row.map_err(|e| fault_of(&e).during("reading who owns what the tables need"))? else {
            continue;
        };
        let (owner, is_changed, granted, comment): (String, bool, Vec<String>, Option<String>) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let (what, on) = (format!("{kind} {identity}"), format!("{} {identity}", kind.to_uppercase()));
        // GRANT has one word for everything that is called.
        let is_called = ["function", "procedure", "aggregate"].contains(&kind.as_str());
        let granted_on = if is_called { format!("ROUTINE {identity}") } else { on.clone() };
        let mut add = |of: &str, remedy: String| {
            all.push(Attire { what: format!("{of} of the {what}"), remedy: vec![remedy] });
        };
        if is_changed {
            add("the privileges", format!("REVOKE ALL ON {granted_on} FROM PUBLIC"));
        }
        for privilege in granted {
            let (privilege, to) = privilege.split_once(" TO ").unwrap_or((&privilege, "PUBLIC"));
            add("the privileges", format!("GRANT {privilege} ON {granted_on} TO {to}"));
        }
        if let Some(comment) = comment {
            add("the comment", format!("COMMENT ON {on} IS {}", quote_literal(&comment)));
        }
        add("the owner", format!("ALTER {on} OWNER TO {owner}"));
    }
    Ok(all)
}
