//! What the guard keeps in a database: a table of fingerprints, made with the rest of the schema, and one function for
//! each migration, made with its event triggers.
//!
//! The function runs with the rights of whoever made it, a superuser as a rule, in everybody's DDL. So it names `pg_temp`
//! last in its search path (left out, it would come first, and anybody could slip a type or a relation in), it calls
//! nothing outside `pg_catalog`, and it reads no relation that belongs to another role.

use segue_model::sqltext::{quote_ident, quote_literal};

/// The fingerprints: of each table as its migration was begun with, and of the leaves that were seen so far.
pub(crate) const DDL: &str = r#"
CREATE TABLE IF NOT EXISTS segue.guarded (
    migration text, relation oid, root oid NOT NULL, name text NOT NULL, place text NOT NULL, fingerprint jsonb NOT NULL,
    PRIMARY KEY (migration, relation));
"#;

/// Which database it is whose object numbers these are; a dump that was restored elsewhere has others.
const PLACE: &str = "(SELECT y.system_identifier || '/' || d.oid FROM pg_control_system() y, pg_database d
           WHERE d.datname = current_database())";

/// The fingerprint of the relation `c` in the schema `n`: all that the stream relies on, and nothing that changes without
/// DDL. `keys` are the keys that old images may carry; `needs` those of them that identify the rows now. Columns are
/// numbers there, so that renaming one is one change and not two.
const FINGERPRINT: &str = "(
    SELECT jsonb_build_object(
        'name', format('%I.%I', n.nspname, c.relname),
        'persistence', c.relpersistence,
        'identity', CASE WHEN c.relkind <> 'p' THEN c.relreplident END,
        'parents', (SELECT coalesce(jsonb_agg(h.inhparent::text ORDER BY h.inhparent), '[]') FROM pg_inherits h
                     WHERE h.inhrelid = c.oid AND NOT c.relispartition),
        'columns', (SELECT coalesce(jsonb_object_agg(a.attnum, jsonb_build_object('name', a.attname,
                               'type', a.atttypid::text, 'typmod', a.atttypmod, 'collation', a.attcollation::text,
                               'notnull', a.attnotnull, 'generated', a.attgenerated, 'identity', a.attidentity)), '{}')
                      FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'keys', coalesce(jsonb_agg(k.key ORDER BY k.key), '[]'),
        'needs', coalesce(jsonb_agg(k.key ORDER BY k.key) FILTER (WHERE k.needed), '[]'))
      FROM (SELECT u.key, CASE WHEN c.relkind <> 'p' AND c.relreplident <> 'f' THEN true
                        ELSE rank() OVER (ORDER BY NOT u.indisprimary, u.indnkeyatts) = 1 OR u.of_leaves END AS needed
              FROM (SELECT i.*,
                           (SELECT jsonb_agg(x.no ORDER BY x.no) FROM unnest(i.indkey::int2[]) WITH ORDINALITY x(no, at)
                             WHERE x.at <= i.indnkeyatts) AS key,
                           EXISTS (SELECT FROM pg_inherits h JOIN pg_index l ON l.indexrelid = h.inhrelid
                                    WHERE h.inhparent = i.indexrelid AND l.indisreplident) AS of_leaves
                      FROM pg_index i WHERE i.indrelid = c.oid) u
             WHERE u.indisunique AND u.indimmediate AND u.indisvalid AND u.indisready
               AND u.indpred IS NULL AND u.indexprs IS NULL
               AND (c.relkind = 'p' OR CASE c.relreplident WHEN 'f' THEN true WHEN 'd' THEN u.indisprimary
                                            WHEN 'i' THEN u.indisreplident ELSE false END)
               AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attnotnull
                                  AND u.key @> to_jsonb(a.attnum))) k)";

/// What differs between the fingerprints `s.was` and `s.now`, in words; NULL if nothing does. A leaf may be renamed.
const DIFFERENCE: &str = "nullif(concat_ws(', ',
    CASE WHEN s.relation = s.root AND s.was ->> 'name' <> s.now ->> 'name' THEN 'it would be called ' || (s.now ->> 'name') END,
    CASE WHEN s.now ->> 'persistence' <> 'p' THEN 'it would not be written to the log any more' END,
    CASE WHEN s.was -> 'parents' <> s.now -> 'parents' THEN 'it would inherit from other tables' END,
    (SELECT string_agg(format('the column %I would %s', coalesce(w.col ->> 'name', n.col ->> 'name'), CASE
                WHEN w.col IS NULL THEN 'be added'
                WHEN n.col IS NULL THEN 'be dropped'
                WHEN w.col -> 'name' <> n.col -> 'name' THEN format('be renamed to %I', n.col ->> 'name')
                WHEN w.col -> 'type' <> n.col -> 'type' OR w.col -> 'typmod' <> n.col -> 'typmod'
                THEN format('change from %s to %s',
                            format_type((w.col ->> 'type')::oid, (w.col ->> 'typmod')::int),
                            format_type((n.col ->> 'type')::oid, (n.col ->> 'typmod')::int))
                WHEN w.col -> 'collation' <> n.col -> 'collation' THEN 'have another collation'
                WHEN w.col -> 'notnull' <> n.col -> 'notnull' AND (n.col ->> 'notnull')::bool THEN 'become NOT NULL'
                WHEN w.col -> 'notnull' <> n.col -> 'notnull' THEN 'lose its NOT NULL'
                ELSE 'be generated in another way' END), ', ' ORDER BY coalesce(w.no, n.no)::int)
       FROM jsonb_each(s.was -> 'columns') w(no, col) FULL JOIN jsonb_each(s.now -> 'columns') n(no, col) ON n.no = w.no
      WHERE w.col IS DISTINCT FROM n.col),
    CASE WHEN s.was -> 'identity' <> s.now -> 'identity' THEN 'its replica identity would change' END,
    (SELECT string_agg(format('the key (%s), which identifies its rows, would be lost', (
                SELECT string_agg(quote_ident(s.was #>> ARRAY['columns', x.no, 'name']), ', ' ORDER BY x.at)
                  FROM jsonb_array_elements_text(k.key) WITH ORDINALITY x(no, at))), ', ')
       FROM jsonb_array_elements(s.was -> 'needs') k(key)
      WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(s.now -> 'keys') h(key) WHERE h.key = k.key))), '')";

/// The names of one migration's objects. The first event trigger is the switch of them all.
pub(super) struct Names {
    /// Of the function, without its schema.
    pub(super) function: String,
    /// Of the event triggers, and the event of each, with its condition.
    pub(super) triggers: [(String, &'static str); 4],
}

impl Names {
    /// A migration's name has no `_`, so no two share an identifier.
    pub(super) fn of(migration: &str) -> Names {
        let identifier = migration.replace('-', "_");
        let trigger = |suffix: &str, when| (format!("segue_guard_{identifier}{suffix}"), when);
        Names {
            function: format!("guard_{identifier}"),
            triggers: [
                // Tables are renamed by ALTER INDEX, too, and typed ones changed by ALTER TYPE.
                trigger(
                    "",
                    "ddl_command_end WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'ALTER SCHEMA', 'ALTER TYPE',
                     'ALTER FOREIGN TABLE', 'CREATE TABLE', 'CREATE FOREIGN TABLE', 'CREATE SCHEMA')",
                ),
                trigger("_drop", "sql_drop"),
                trigger("_rewrite", "table_rewrite"),
                trigger("_start", "ddl_command_start WHEN TAG IN ('DROP INDEX')"),
            ],
        }
    }

    /// The switch of them all.
    pub(super) fn switch(&self) -> &str {
        &self.triggers[0].0
    }
}

/// What `RAISE` adds to every refusal.
fn way_out(migration: &str, switch: &str) -> String {
    let detail = "The change stream to the other side could not go on behind this change.";
    let hint = format!(
        "Complete or cancel migration {migration} first (segue cancel), then repeat the command. In an emergency: \
         ALTER EVENT TRIGGER {switch} DISABLE; the command then succeeds, and the migration stops with SEGUE-DDL-DRIFT \
         until the change is undone or the migration cancelled."
    );
    format!(
        "ERRCODE = '55006', DETAIL = {}, HINT = {}, CONSTRAINT = {}",
        quote_literal(detail),
        quote_literal(&hint),
        quote_literal(&format!("segue:{migration}"))
    )
}

/// The function of all events; what stands between `@` is filled in.
const FUNCTION: &str = r#"CREATE OR REPLACE FUNCTION segue.@name@() RETURNS event_trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $guard$
DECLARE touched oid[]; gone oid[]; roots oid[]; tree oid[]; s record; why text;
BEGIN
    IF current_setting('segue.migration', true) = @migration@ THEN
        -- Segue's own transaction
        RETURN;
    ELSIF TG_EVENT = 'ddl_command_start' THEN
        touched := CASE WHEN current_query() ~* '\mconcurrently\M' THEN ARRAY[]::oid[] END;
    ELSIF TG_EVENT = 'table_rewrite' THEN
        touched := ARRAY[pg_event_trigger_table_rewrite_oid()];
    ELSIF TG_EVENT = 'sql_drop' THEN
        SELECT array_agg(d.objid) FILTER (WHERE d.objsubid = 0), array_agg(d.objid) FILTER (WHERE d.objsubid > 0)
          INTO gone, touched FROM pg_event_trigger_dropped_objects() d
         WHERE d.classid = 'pg_class'::regclass AND NOT d.is_temporary;
    ELSE
        SELECT array_agg(d.objid) INTO touched FROM pg_event_trigger_ddl_commands() d
         WHERE d.classid IN ('pg_class'::regclass, 'pg_namespace'::regclass)
           AND d.schema_name IS DISTINCT FROM 'pg_temp';
    END IF;
    IF touched IS NULL AND gone IS NULL
       OR NOT EXISTS (SELECT FROM pg_event_trigger t WHERE t.evtname = @switch@ AND t.evtenabled <> 'D')
       OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass('segue.guarded') AND c.relkind = 'r'
                         AND c.relowner = (SELECT u.oid FROM pg_roles u WHERE u.rolname = current_user)) THEN
        RETURN;
    END IF;
    IF TG_EVENT = 'ddl_command_start' THEN
        -- it cannot be undone any more when it ends, and runs alone: all that can be asked is whether it names such an index
        SELECT g.name, i.relname AS index INTO s
          FROM segue.guarded g JOIN pg_class c ON c.oid = g.relation
          JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
         WHERE g.migration = @migration@ AND g.place = @PLACE@
           AND CASE c.relreplident WHEN 'i' THEN x.indisreplident WHEN 'f' THEN EXISTS (
                   SELECT FROM jsonb_array_elements(g.fingerprint -> 'needs') k(key)
                    WHERE k.key = (SELECT jsonb_agg(u.no ORDER BY u.no) FROM unnest(x.indkey::int2[]) u(no))) END
           AND (i.relname = ANY (regexp_split_to_array(lower(current_query()), '[^[:alnum:]_$]+'))
                OR i.relname ~ '[^a-z0-9_$]' AND position(i.relname IN current_query()) > 0) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'segue does not let % be changed while migration % moves it: its index % identifies its rows',
                s.name, @migration@, quote_ident(s.index) USING @why@;
        END IF;
        RETURN;
    END IF;
    IF gone IS NOT NULL THEN
        SELECT g.name INTO s FROM segue.guarded g
         WHERE g.migration = @migration@ AND g.relation = g.root AND g.relation = ANY (gone) AND g.place = @PLACE@ LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'segue does not let % be dropped while migration % moves it', s.name, @migration@
                USING @why@;
        END IF;
        DELETE FROM segue.guarded g WHERE g.migration = @migration@ AND g.relation = ANY (gone);
        -- what an ALTER TABLE drops of a table is looked at when it ends; an index that goes with its table is no matter
        IF TG_TAG NOT IN ('ALTER TABLE', 'DROP TABLE')
           AND EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d WHERE d.object_type = 'index') THEN
            SELECT array_agg(g.relation) INTO touched FROM segue.guarded g WHERE g.migration = @migration@;
        END IF;
    END IF;
    IF touched IS NULL OR TG_EVENT = 'sql_drop' AND TG_TAG = 'ALTER TABLE' THEN
        RETURN;
    END IF;

    -- the migration's tables that are touched, or lie above or below what is
    WITH RECURSIVE up(relation) AS (
        SELECT unnest(touched) UNION SELECT h.inhparent FROM up u JOIN pg_inherits h ON h.inhrelid = u.relation
    ), above(root, relation) AS (
        SELECT g.root, g.relation FROM segue.guarded g WHERE g.migration = @migration@ AND g.relation = g.root
        UNION SELECT a.root, h.inhparent FROM above a JOIN pg_inherits h ON h.inhrelid = a.relation)
    SELECT array_agg(c.oid) INTO roots FROM segue.guarded g JOIN pg_class c ON c.oid = g.relation
     WHERE g.migration = @migration@ AND g.relation = g.root
       AND (c.oid IN (SELECT u.relation FROM up u) OR c.relnamespace = ANY (touched)
            OR c.oid IN (SELECT a.root FROM above a WHERE a.relation = ANY (touched))
            OR EXISTS (SELECT FROM pg_type t WHERE t.oid = c.reloftype AND t.typrelid = ANY (touched)));
    IF roots IS NULL THEN
        RETURN;
    END IF;
    IF TG_EVENT = 'table_rewrite' THEN
        SELECT format('%I.%I', n.nspname, c.relname) AS name INTO s
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = touched[1] AND (c.oid = ANY (roots) OR @published@)
           AND EXISTS (SELECT FROM segue.guarded g WHERE g.root = ANY (roots) AND g.place = @PLACE@);
        IF FOUND THEN
            RAISE EXCEPTION 'segue does not let the rows of % be rewritten while migration % moves it', s.name, @migration@
                USING @why@;
        END IF;
        RETURN;
    END IF;

    WITH RECURSIVE below(relation) AS (
        SELECT unnest(roots)
        UNION SELECT h.inhrelid FROM below b JOIN pg_class p ON p.oid = b.relation AND p.relkind = 'p'
                JOIN pg_inherits h ON h.inhparent = b.relation)
    SELECT array_agg(b.relation) INTO tree FROM below b;
    -- what was detached is anybody's
    DELETE FROM segue.guarded g WHERE g.migration = @migration@ AND g.root = ANY (roots) AND g.relation <> ALL (tree);
    FOR s IN
        WITH RECURSIVE below(root, relation) AS (
            SELECT r, r FROM unnest(roots) r
            UNION SELECT b.root, h.inhrelid FROM below b JOIN pg_class p ON p.oid = b.relation AND p.relkind = 'p'
                    JOIN pg_inherits h ON h.inhparent = b.relation)
        SELECT b.root, b.relation, c.relkind, g.place, g.fingerprint AS was, @FINGERPRINT@ AS now,
               (SELECT o.name FROM segue.guarded o WHERE o.migration = @migration@ AND o.relation = b.root) AS whole,
               @published@ AS published
          FROM below b JOIN pg_class c ON c.oid = b.relation JOIN pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN segue.guarded g ON g.migration = @migration@ AND g.relation = b.relation
         WHERE b.relation = b.root OR c.relkind <> 'p' AND (g.relation IS NULL OR b.relation = ANY (touched))
         ORDER BY b.relation <> b.root, b.relation
    LOOP
        IF s.relation <> s.root AND (NOT s.published OR s.was IS NULL) THEN
            -- not followed yet: what it is when that begins is what counts, and whether it can be followed is judged then
            INSERT INTO segue.guarded AS g (migration, relation, root, name, place, fingerprint)
                VALUES (@migration@, s.relation, s.root, s.now ->> 'name', @PLACE@, s.now)
                ON CONFLICT (migration, relation) DO UPDATE
                SET root = excluded.root, name = excluded.name, place = excluded.place, fingerprint = excluded.fingerprint
                WHERE (g.root, g.place, g.fingerprint) IS DISTINCT FROM (excluded.root, excluded.place, excluded.fingerprint);
            CONTINUE;
        END IF;
        SELECT @DIFFERENCE@ INTO why;
        IF why IS NOT NULL AND s.place = @PLACE@ THEN
            RAISE EXCEPTION 'segue does not let % be changed while migration % moves it: %',
                CASE WHEN s.relation = s.root THEN s.was ->> 'name' ELSE format('%s of %s', s.now ->> 'name', s.whole) END,
                @migration@, why USING @why@;
        END IF;
    END LOOP;
END $guard$"#;

/// Makes the function of all events.
///
/// Which tables a command touched is asked first, and almost always the answer is none. Only then are the tables of the
/// migration looked at that lie above or below what was touched: what their fingerprint is now, and what it was.
pub(super) fn function(migration: &str, publications: &[String; 2]) -> String {
    let names = Names::of(migration);
    let (name, switch) = (quote_ident(&names.function), quote_literal(names.switch()));
    let [forward, reverse] = publications.each_ref().map(|name| quote_literal(name));
    let published = format!(
        "EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                  WHERE r.prrelid = c.oid AND p.pubname IN ({forward}, {reverse}))"
    );
    let why = way_out(migration, names.switch());
    let migration = quote_literal(migration);
    [
        ("@DIFFERENCE@", DIFFERENCE),
        ("@FINGERPRINT@", FINGERPRINT),
        ("@PLACE@", PLACE),
        ("@migration@", &migration),
        ("@name@", &name),
        ("@published@", &published),
        ("@switch@", &switch),
        ("@why@", &why),
    ]
    .iter()
    .fold(FUNCTION.to_owned(), |text, (place, filling)| text.replace(place, filling))
}

/// Writes the fingerprints as they are now of the tables in `$1::text[]`, and forgets those of all others.
pub(super) fn remember(migration: &str, tables: &[String]) -> String {
    let migration = quote_literal(migration);
    let tables: Vec<String> = tables.iter().map(|table| quote_literal(table)).collect();
    format!(
        "WITH RECURSIVE below(root, relation) AS (
             SELECT to_regclass(t)::oid, to_regclass(t)::oid FROM unnest(ARRAY[{tables}]::text[]) t
             UNION SELECT b.root, h.inhrelid FROM below b JOIN pg_class p ON p.oid = b.relation AND p.relkind = 'p'
                     JOIN pg_inherits h ON h.inhparent = b.relation),
         now AS (
             INSERT INTO segue.guarded AS g (migration, relation, root, name, place, fingerprint)
             SELECT {migration}, b.relation, b.root, format('%I.%I', n.nspname, c.relname), {PLACE}, {FINGERPRINT}
               FROM below b JOIN pg_class c ON c.oid = b.relation JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE b.relation = b.root OR c.relkind <> 'p'
                 ON CONFLICT (migration, relation) DO UPDATE
                SET root = excluded.root, name = excluded.name, place = excluded.place, fingerprint = excluded.fingerprint
              WHERE (g.root, g.name, g.place, g.fingerprint)
                    IS DISTINCT FROM (excluded.root, excluded.name, excluded.place, excluded.fingerprint))
         DELETE FROM segue.guarded g
          WHERE g.migration = {migration} AND g.relation <> ALL (ARRAY(SELECT b.relation FROM below b))",
        tables = tables.join(", ")
    )
}
