//! What hangs on tables: triggers, rules, policies, statistics, sequences, grants, publications.

use super::{Attached, Grant, SchemaFacts, SequenceFacts, rows};
use crate::definition::settled;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use tokio_postgres::Client;

/// Segue's fence is nobody's trigger. Triggers of partitions that come from the partitioned table are left out.
pub(super) fn triggers_sql(version: i32) -> String {
    let own = if version >= 130_000 { "t.tgparentid = 0" } else { "true" };
    format!(
        "SELECT t.tgrelid, t.tgname::text, pg_get_triggerdef(t.oid), t.tgenabled IN ('O', 'A'),
                t.tgenabled IN ('R', 'A'), obj_description(t.oid, 'pg_trigger')
           FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace n ON n.oid = f.pronamespace
          WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND {own} AND n.nspname <> 'segue'
          ORDER BY t.tgrelid, t.tgname"
    )
}

pub(super) const RULES: &str =
    "SELECT r.ev_class, r.rulename::text, pg_get_ruledef(r.oid), r.ev_enabled IN ('O', 'A'),
        r.ev_enabled IN ('R', 'A'), obj_description(r.oid, 'pg_rewrite')
   FROM pg_rewrite r WHERE r.ev_class = ANY ($1) AND r.ev_type <> '1' ORDER BY r.ev_class, r.rulename";

/// The statistics target of the object travels as part of its definition, behind a line end.
pub(super) const STATISTICS: &str = "SELECT s.stxrelid, quote_ident(n.nspname) || '.' || quote_ident(s.stxname),
        pg_get_statisticsobjdef(s.oid) || CASE WHEN {target} < 0 THEN '' ELSE E'\\n' || {target} END, true, false,
        obj_description(s.oid, 'pg_statistic_ext')
   FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY ($1) ORDER BY s.stxrelid, s.stxname";

pub(super) async fn attached(client: &Client, sql: &str, oids: &[u32]) -> Outcome<Vec<Attached>> {
    let found = rows(client, sql, &[&oids]).await?;
    Ok(found
        .iter()
        .map(|row| Attached {
            table: row.get(0),
            name: row.get(1),
            definition: settled(row.get(2)),
            enabled: row.get(3),
            always: row.get(4),
            comment: row.get(5),
        })
        .collect())
}

/// Policies have no definition in the server's words; what follows their table's name is put together here.
pub(super) async fn policies(client: &Client, oids: &[u32]) -> Outcome<Vec<Attached>> {
    let sql = "SELECT p.polrelid, p.polname::text,
                ' AS ' || CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END || ' FOR ' ||
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                    WHEN 'd' THEN 'DELETE' ELSE 'ALL' END || ' TO ' ||
                (SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', '
                                   ORDER BY CASE WHEN r = 0 THEN '' ELSE pg_get_userbyid(r)::text END COLLATE \"C\")
                   FROM unnest(p.polroles) r) ||
                coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '') ||
                coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''),
                true, false, obj_description(p.oid, 'pg_policy')
           FROM pg_policy p WHERE p.polrelid = ANY ($1) ORDER BY p.polrelid, p.polname";
    attached(client, sql, oids).await
}

pub(super) async fn sequences(client: &Client, oids: &[u32]) -> Outcome<Vec<SequenceFacts>> {
    let sql = "SELECT s.oid, d.refobjid, a.attname::text, n.nspname::text, s.relname::text,
                'AS ' || format_type(q.seqtypid, NULL) || ' INCREMENT BY ' || q.seqincrement || ' MINVALUE ' || q.seqmin
                    || ' MAXVALUE ' || q.seqmax || ' START WITH ' || q.seqstart || ' CACHE ' || q.seqcache
                    || CASE WHEN q.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END,
                a.attidentity <> '', obj_description(s.oid, 'pg_class')
           FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                JOIN pg_namespace n ON n.oid = s.relnamespace JOIN pg_sequence q ON q.seqrelid = s.oid
                JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
          WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
            AND d.refobjid = ANY ($1) ORDER BY d.refobjid, a.attnum, s.relname";
    let found = rows(client, sql, &[&oids]).await?;
    Ok(found
        .iter()
        .map(|row| SequenceFacts {
            oid: row.get(0),
            table: row.get(1),
            column: row.get(2),
            name: QualifiedName::new(row.get::<_, &str>(3), row.get::<_, &str>(4)),
            definition: row.get(5),
            identity: row.get(6),
            comment: row.get(7),
        })
        .collect())
}

pub(super) async fn schemas(client: &Client, oids: &[u32]) -> Outcome<Vec<SchemaFacts>> {
    let sql =
        "SELECT DISTINCT n.oid, n.nspname::text, pg_get_userbyid(n.nspowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = ANY ($1) ORDER BY 2";
    let found = rows(client, sql, &[&oids]).await?;
    Ok(found.iter().map(|row| SchemaFacts { oid: row.get(0), name: row.get(1), owner: row.get(2) }).collect())
}

pub(super) async fn published(client: &Client, oids: &[u32]) -> Outcome<Vec<(u32, String)>> {
    let sql = "SELECT r.prrelid, p.pubname::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
          WHERE r.prrelid = ANY ($1) AND NOT EXISTS (SELECT FROM pg_publication_rel s WHERE s.prpubid = p.oid
                                                        AND s.prrelid = to_regclass('segue.signal')) ORDER BY 1, 2";
    Ok(rows(client, sql, &[&oids]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

pub(super) async fn publications(client: &Client) -> Outcome<Vec<String>> {
    let found = rows(client, "SELECT pubname::text FROM pg_publication ORDER BY 1", &[]).await?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// What its owner may do is the owner's by itself, and left out.
pub(super) const TABLE_GRANTS: &str =
    "SELECT c.oid, NULL::text, nullif(x.grantee, 0), x.privilege_type, x.is_grantable
       FROM pg_class c, LATERAL aclexplode(c.relacl) x WHERE c.oid = ANY ($1) AND x.grantee <> c.relowner
     UNION ALL
     SELECT a.attrelid, a.attname::text, nullif(x.grantee, 0), x.privilege_type, x.is_grantable
       FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid, LATERAL aclexplode(a.attacl) x
      WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND x.grantee <> c.relowner";
pub(super) const SCHEMA_GRANTS: &str = "SELECT n.oid, NULL::text, nullif(x.grantee, 0), x.privilege_type, x.is_grantable
       FROM pg_namespace n, LATERAL aclexplode(n.nspacl) x WHERE n.oid = ANY ($1) AND x.grantee <> n.nspowner";

pub(super) async fn grants(
    client: &Client,
    kind: &'static str,
    sql: &str,
    oids: &[u32],
) -> Outcome<Vec<Grant>> {
    let sql = format!(
        "SELECT g.oid, g.col, CASE WHEN g.grantee IS NULL THEN NULL ELSE pg_get_userbyid(g.grantee)::text END,
                g.privilege, g.grantable
           FROM ({sql}) AS g(oid, col, grantee, privilege, grantable) ORDER BY 1, 2, 3, 4"
    );
    let found = rows(client, &sql, &[&oids]).await?;
    Ok(found
        .iter()
        .map(|row| Grant {
            kind,
            oid: row.get(0),
            column: row.get(1),
            grantee: row.get(2),
            privilege: row.get(3),
            grantable: row.get(4),
        })
        .collect())
}
