-- Read by crates/router/src/classify/catalog.rs, which says what each member means.
SELECT pg_catalog.json_build_object(
  'relations', (
    SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
      'oid', c.oid::pg_catalog.int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
      'row_security', c.relrowsecurity, 'partition', c.relispartition,
      'parents', (SELECT coalesce(pg_catalog.json_agg(i.inhparent::pg_catalog.int8), '[]')
                    FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
      'definition', CASE c.relkind WHEN 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END)), '[]')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'),
  'functions', (
    SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
      'schema', n.nspname, 'name', p.proname, 'kind', p.prokind, 'volatility', p.provolatile, 'language', l.lanname,
      'takes_row', p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1
        AND EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.oid = p.proargtypes[0] AND t.typtype IN ('c', 'd', 'p')),
      -- A body that the server has parsed has no text.
      'body', CASE WHEN l.lanname = 'sql' AND pg_catalog.to_jsonb(p) ->> 'prosqlbody' IS NULL THEN p.prosrc END,
      'defaults', pg_catalog.pg_get_expr(p.proargdefaults, 0),
      'calls', CASE p.prokind WHEN 'a' THEN (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_array(fn.nspname, f.proname))
        FROM pg_catalog.pg_aggregate a
        JOIN pg_catalog.pg_proc f ON f.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn,
          a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
        JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
        WHERE a.aggfnoid = p.oid) END)), '[]')
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.prokind <> 'p' AND n.nspname <> 'information_schema'
      AND (n.nspname <> 'pg_catalog' OR p.oid >= 16384)),
  'system_functions', (
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
      'name', s.proname, 'volatile', s.volatile, 'aggregate', s.aggregate))
    FROM (SELECT p.proname, pg_catalog.bool_or(p.provolatile = 'v') AS volatile,
                 pg_catalog.bool_or(p.prokind = 'a') AS aggregate
            FROM pg_catalog.pg_proc p
           WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.prokind <> 'p' AND p.oid < 16384
           GROUP BY p.proname) s),
  'operators', (
    SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
      'name', o.oprname, 'schema', n.nspname, 'function', p.proname)), '[]')
    FROM pg_catalog.pg_operator o
    JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE o.oid >= 16384),
  -- What is called without being named: by casts, by comparisons of an index's kind, by the checks of domains.
  'implicit', (
    SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(n.nspname, p.proname)), '[]')
    FROM (SELECT c.castfunc::pg_catalog.oid AS called FROM pg_catalog.pg_cast c
           WHERE c.oid >= 16384 AND c.castfunc <> 0
          UNION
          -- Whoever writes a type in C seldom says that its functions do not write.
          SELECT a.amproc::pg_catalog.oid FROM pg_catalog.pg_amproc a
            JOIN pg_catalog.pg_proc p ON p.oid = a.amproc
            JOIN pg_catalog.pg_language l ON l.oid = p.prolang
           WHERE a.oid >= 16384 AND l.lanname NOT IN ('internal', 'c')
          UNION
          SELECT d.refobjid FROM pg_catalog.pg_depend d
            JOIN pg_catalog.pg_constraint k ON k.oid = d.objid AND k.contypid <> 0
           WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
             AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass) i
    JOIN pg_catalog.pg_proc p ON p.oid = i.called
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace)
)::pg_catalog.text
