//! What the fence keeps in a database: the ownership row, and the server-side calls that change it.
//!
//! Each call is one statement of one READ COMMITTED transaction, behind `segue.enter`, and each statement inside a
//! VOLATILE PL/pgSQL function has a snapshot of its own: what is compared after a lock was taken is what is there under
//! that lock. The order is the same everywhere: the tables' locks, then the ownership row.

/// Tables and functions, made together with the rest of the schema.
pub(crate) const DDL: &str = r#"
-- whether this database takes the application's writes; a table that is fenced and has no row here refuses all of them
CREATE TABLE IF NOT EXISTS segue.owner (
    migration text PRIMARY KEY, state text NOT NULL CHECK (state IN ('owner', 'fenced', 'handed_over', 'follower')),
    epoch bigint NOT NULL, attempt bigint NOT NULL DEFAULT 0, deadline timestamptz, marker bigint,
    elsewhere text NOT NULL, changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    opened_at pg_lsn NOT NULL DEFAULT '0/0',
    CHECK (state <> 'fenced' OR (deadline IS NOT NULL AND marker IS NOT NULL)));

-- what an earlier build made. Nothing is altered that is as it should be: the lock would wait for late writers, and they for it
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = 'segue.owner'::regclass AND a.attname = 'opened_at') THEN
        ALTER TABLE segue.owner ADD COLUMN IF NOT EXISTS opened_at pg_lsn NOT NULL DEFAULT '0/0';
    END IF;
    IF to_regprocedure('segue.open(text, bigint, text, pg_lsn, integer)') IS NOT NULL THEN
        DROP FUNCTION segue.open(text, bigint, text, pg_lsn, integer);
        DROP FUNCTION IF EXISTS segue.become_follower(text, text[], bigint, integer);
    END IF;
    IF to_regprocedure('segue.flip(text, bigint, bigint, bigint)') IS NOT NULL THEN
        DROP FUNCTION segue.flip(text, bigint, bigint, bigint);
    END IF;
END $$;

-- what autovacuum was set to before it was turned off for the switch; NULL: it was not set
CREATE TABLE IF NOT EXISTS segue.autovacuum (
    migration text, relation oid, in_main text, in_toast text, off_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, relation));

-- (functions in SQL are planned at each call, these once in a session of the fence's: they are called while nobody may write)
CREATE OR REPLACE FUNCTION segue.ownership(_migration text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (SELECT jsonb_build_object('state', o.state, 'epoch', o.epoch, 'attempt', o.attempt, 'marker', o.marker,
                       'deadline_us', (extract(epoch FROM o.deadline) * 1000000)::bigint,
                       'opened_at', o.opened_at - '0/0'::pg_lsn)
              FROM segue.owner o WHERE o.migration = _migration);
END $$;

CREATE OR REPLACE FUNCTION segue.answer(_migration text, _is text, _why text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN jsonb_build_object('is', _is, 'found', segue.ownership(_migration), 'why', _why);
END $$;

-- the tables that carry the migration's fence, in the order in which they are locked: roots before what is below them,
-- as everybody else who writes through a root
CREATE OR REPLACE FUNCTION segue.fence_carriers(_migration text)
RETURNS TABLE (relation oid, sql_name text, trigger_name text, enabled "char")
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN QUERY
    SELECT c.oid, format('%I.%I', n.nspname, c.relname), t.tgname::text, t.tgenabled
      FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace AND s.nspname = 'segue'
      JOIN pg_trigger t ON t.tgfoid = p.oid JOIN pg_class c ON c.oid = t.tgrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE p.proname = 'fence_' || _migration
     ORDER BY EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid), c.relkind <> 'p', c.oid;
END $$;

-- one of them, without a look at the triggers of all other tables
CREATE OR REPLACE FUNCTION segue.fence_carrier(_migration text, _relation oid)
RETURNS TABLE (sql_name text, trigger_name text, enabled "char")
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT format('%I.%I', n.nspname, c.relname), t.tgname::text, t.tgenabled
      FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace s ON s.oid = p.pronamespace AND s.nspname = 'segue'
      JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE t.tgrelid = _relation AND p.proname = 'fence_' || _migration
$$;

-- (pg_temp last: unnamed, it would come first, and a writer could put a type of its own, with a CHECK that runs as the
-- function's owner, in the place of one of ours)
-- the text of the fence. Epoch, attempt and deadline are literals in it, and not read from the row, because a transaction
-- with an older snapshot would not see the row as it is; a function it does see as it is, since it is looked up after the
-- table's lock was had. Past the deadline the row decides, as it is now: where the snapshot may be older than the
-- row, the row is locked, which a changed row refuses with a serialization failure.
CREATE OR REPLACE FUNCTION segue.write_fence(_migration text, _epoch bigint, _attempt bigint, _deadline timestamptz)
RETURNS void LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog SET DateStyle = 'ISO, YMD' SET TimeZone = 'UTC' AS $write$
DECLARE elsewhere text;
BEGIN
    SELECT o.elsewhere INTO elsewhere FROM segue.owner o WHERE o.migration = _migration;
    EXECUTE format('CREATE OR REPLACE FUNCTION segue.%I() RETURNS trigger LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS %L', 'fence_' || _migration, format($body$
DECLARE found_state text; why text;
BEGIN
    IF clock_timestamp() >= timestamptz %2$L THEN
        UPDATE segue.owner o SET state = 'owner', deadline = NULL, changed_at = clock_timestamp()
         WHERE o.migration = %1$L AND o.state = 'fenced' AND o.epoch = %3$s AND o.attempt = %4$s
           AND o.deadline <= clock_timestamp();
        IF FOUND THEN
            RETURN NULL;
        END IF;
        IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT o.state INTO found_state FROM segue.owner o WHERE o.migration = %1$L;
        ELSE
            SELECT o.state INTO found_state FROM segue.owner o WHERE o.migration = %1$L FOR SHARE;
        END IF;
        IF found_state = 'owner' THEN
            RETURN NULL;
        END IF;
    ELSIF timestamptz %2$L < 'infinity' THEN
        found_state := 'fenced';
    ELSE
        found_state := 'follower';
    END IF;
    -- sequences are not rolled back with the statement: so many were refused, and the last one now
    PERFORM nextval(to_regclass(%7$L)), setval(to_regclass(%8$L), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    why := CASE found_state
        WHEN 'fenced' THEN 'writes are just being moved'
        WHEN 'handed_over' THEN 'writes have been moved away from this database'
        WHEN 'follower' THEN 'this database follows the owner of the writes'
        ELSE 'nothing says that this database is the owner of the writes' END;
    RAISE EXCEPTION 'segue: migration %% does not let %%.%% be written here: %%', %1$L, TG_TABLE_SCHEMA, TG_TABLE_NAME, why
        USING ERRCODE = '25006', HINT = %5$L, DETAIL = 'fence of epoch %3$s, attempt %4$s',
              SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, CONSTRAINT = %6$L;
END $body$, _migration, _deadline, _epoch, _attempt,
        'The owner of migration ' || _migration || ' is elsewhere, or will be in a moment: write to ' || elsewhere || '.',
        'segue:' || _migration, format('segue.%I', 'refused_' || _migration), format('segue.%I', 'refused_at_' || _migration)));
END $write$;

-- which of _tables, and of all that is below them, do not carry the fence; NULL: all do
CREATE OR REPLACE FUNCTION segue.unfenced(_migration text, _tables text[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
BEGIN
    RETURN (
        WITH RECURSIVE tree(relation, name) AS (
            SELECT to_regclass(t)::oid, t FROM unnest(_tables) t
            UNION SELECT i.inhrelid, i.inhrelid::regclass::text FROM tree t JOIN pg_inherits i ON i.inhparent = t.relation)
        SELECT string_agg(t.name, ', ') FROM tree t
         WHERE NOT EXISTS (SELECT FROM segue.fence_carriers(_migration) c WHERE c.relation = t.relation));
END $$;

-- locks every table that carries the fence against writers, and checks that all of _tables, and all that is below them, do;
-- in no time (_lock_ms = 0) it only looks, and locks nothing.
-- What it takes to find the tables counts for nothing, and is nobody's wait.
-- The time for all locks together is below deadlock_timeout: whoever waits for one of ours, and holds one that we wait for,
-- is never picked as a deadlock's victim.
CREATE OR REPLACE FUNCTION segue.lock_fenced(_migration text, _tables text[], _lock_ms int)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE began timestamptz; carriers oid[]; names text[]; carrier record; left_ms int; bare text;
BEGIN
    SELECT array_agg(c.relation), array_agg(c.sql_name) INTO carriers, names FROM segue.fence_carriers(_migration) c;
    _lock_ms := least(_lock_ms, extract(epoch FROM current_setting('deadlock_timeout')::interval) * 900);
    began := clock_timestamp();
    FOR carrier IN SELECT * FROM unnest(carriers, names) c(relation, sql_name) WHERE _lock_ms > 0 LOOP
        left_ms := _lock_ms - (extract(epoch FROM clock_timestamp() - began) * 1000)::int;
        IF left_ms < 1 THEN
            RAISE EXCEPTION 'segue: the tables of migration % could not be locked in % ms', _migration, _lock_ms
                USING ERRCODE = '55P03';
        END IF;
        PERFORM set_config('lock_timeout', left_ms::text, true);
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', carrier.sql_name);
        IF to_regclass(carrier.sql_name) IS DISTINCT FROM carrier.relation THEN
            RAISE EXCEPTION 'segue: % was renamed just now', carrier.sql_name USING ERRCODE = '55P03';
        END IF;
    END LOOP;
    bare := segue.unfenced(_migration, _tables);
    IF bare IS NOT NULL THEN
        RAISE EXCEPTION 'segue: % of migration % cannot be fenced yet', bare, _migration
            USING ERRCODE = '55000', HINT = 'a table was made or attached since the fence was prepared; prepare it again';
    END IF;
END $$;

-- enables the triggers of all tables that carry the fence, or disables them; NULL: only looks
CREATE OR REPLACE FUNCTION segue.set_triggers(_migration text, _enable boolean)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE carrier record; verb text := CASE WHEN _enable THEN 'ENABLE' ELSE 'DISABLE' END;
BEGIN
    FOR carrier IN SELECT * FROM segue.fence_carriers(_migration) c
                    WHERE c.enabled <> CASE WHEN _enable THEN 'O'::"char" WHEN NOT _enable THEN 'D'::"char" END LOOP
        -- ONLY: what is below a root is named by itself
        EXECUTE format('ALTER TABLE ONLY %s %s TRIGGER %I', carrier.sql_name, verb, carrier.trigger_name);
    END LOOP;
END $$;

-- reads and plans in this session what the calls below look at, so that they have not to do it while nobody may write
CREATE OR REPLACE FUNCTION segue.get_ready(_migration text, _tables text[])
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
    PERFORM segue.lock_fenced(_migration, _tables, 0);
    PERFORM segue.set_triggers(_migration, NULL);
    PERFORM segue.answer(_migration, 'ready');
    -- keeps no lock, and needs no right to the rows
    PERFORM pg_relation_size(c.relation) FROM segue.fence_carriers(_migration) c;
END $$;

-- owner(n) or fenced(n), last attempt as expected → fenced(n, attempt, deadline), with a marker in the stream
CREATE OR REPLACE FUNCTION segue.fence(_migration text, _tables text[], _epoch bigint, _expected bigint, _attempt bigint,
    _hold_ms bigint, _lock_ms int) RETURNS jsonb LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner; until timestamptz; signal bigint;
BEGIN
    -- a look without locks: what is plainly not to be done must not hold writers up
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration;
    IF o.state = 'fenced' AND o.epoch = _epoch AND o.attempt = _attempt AND _attempt > _expected THEN
        RETURN segue.answer(_migration, 'already_done');
    ELSIF o.state IS NULL OR o.state NOT IN ('owner', 'fenced') OR o.epoch <> _epoch OR o.attempt <> _expected
          OR _attempt <= o.attempt THEN
        RETURN segue.answer(_migration, 'refused', 'this is not the ownership that was to be fenced');
    END IF;
    PERFORM segue.lock_fenced(_migration, _tables, _lock_ms);
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration FOR UPDATE;
    IF o.state IS NULL OR o.state NOT IN ('owner', 'fenced') OR o.epoch <> _epoch OR o.attempt <> _expected THEN
        RETURN segue.answer(_migration, 'refused', 'the ownership changed just now');
    END IF;
    until := clock_timestamp() + _hold_ms * interval '1 millisecond';
    PERFORM segue.write_fence(_migration, _epoch, _attempt, until);
    PERFORM segue.set_triggers(_migration, true);
    INSERT INTO segue.signal AS s (migration, id, at, note) VALUES (_migration, 1, clock_timestamp(), NULL)
        ON CONFLICT (migration) DO UPDATE SET id = s.id + 1, at = excluded.at, note = NULL RETURNING s.id INTO signal;
    UPDATE segue.owner w SET state = 'fenced', attempt = _attempt, deadline = until, marker = signal,
           changed_at = clock_timestamp() WHERE w.migration = _migration;
    RETURN segue.answer(_migration, 'done');
END $$;

-- fenced(n, attempt) → owner(n). Without locks (_lock_ms = 0) the fence stays in place and lets everybody pass.
CREATE OR REPLACE FUNCTION segue.unfence(_migration text, _tables text[], _epoch bigint, _attempt bigint, _lock_ms int)
RETURNS jsonb LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner; answer text := 'done';
BEGIN
    IF _lock_ms > 0 THEN
        PERFORM segue.lock_fenced(_migration, '{}', _lock_ms);
    END IF;
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration FOR UPDATE;
    IF o.state IS NULL OR o.epoch <> _epoch OR o.attempt <> _attempt OR o.state NOT IN ('fenced', 'owner') THEN
        RETURN segue.answer(_migration, 'refused', 'this is not the fence that was to be lifted');
    ELSIF o.state = 'owner' THEN
        answer := 'already_done';
    ELSE
        UPDATE segue.owner w SET state = 'owner', deadline = NULL, changed_at = clock_timestamp()
         WHERE w.migration = _migration;
    END IF;
    PERFORM segue.write_fence(_migration, _epoch, _attempt, '-infinity');
    IF _lock_ms > 0 THEN
        PERFORM segue.set_triggers(_migration, false);
    END IF;
    RETURN segue.answer(_migration, answer);
END $$;

-- fenced(n, attempt), before its deadline → handed_over(n). The row first; what is compared, and the clock, are read after
-- the lock was had. A table that was attached under the fence has rows that the other side does not.
CREATE OR REPLACE FUNCTION segue.flip(_migration text, _tables text[], _epoch bigint, _attempt bigint, _margin_ms bigint)
RETURNS jsonb LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner; late boolean; bare text;
BEGIN
    PERFORM FROM segue.owner w WHERE w.migration = _migration FOR UPDATE;
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration;
    late := clock_timestamp() >= o.deadline - _margin_ms * interval '1 millisecond';
    IF o.state = 'handed_over' AND o.epoch = _epoch AND o.attempt = _attempt THEN
        RETURN segue.answer(_migration, 'already_done');
    ELSIF o.state IS DISTINCT FROM 'fenced' OR o.epoch <> _epoch OR o.attempt <> _attempt THEN
        RETURN segue.answer(_migration, 'refused', 'this is not the fence under which writes were to be handed over');
    ELSIF late THEN
        RETURN segue.answer(_migration, 'refused', 'the deadline of the fence is too near, or past');
    END IF;
    bare := segue.unfenced(_migration, _tables);
    IF bare IS NOT NULL THEN
        RETURN segue.answer(_migration, 'refused', format('%s was made or attached under the fence', bare));
    END IF;
    UPDATE segue.owner w SET state = 'handed_over', deadline = NULL, changed_at = clock_timestamp()
     WHERE w.migration = _migration;
    RETURN segue.answer(_migration, 'done');
END $$;

-- a row below the epoch after n → owner of that, under whose fence(n, attempt) the other side has handed over, if the
-- stream that leads here has come as far as the caller saw it. Locks as in unfence.
-- opened_at: who writes as this owner's client commits above it, since it finds the row or the text only after the commit of
-- this. Whoever wrote before in spite of the fence has committed below it, if the locks were had: he held one until then.
-- Without them he may be under way still, and commit above it.
CREATE OR REPLACE FUNCTION segue.open(_migration text, _epoch bigint, _attempt bigint, _direction text, _position pg_lsn,
    _lock_ms int) RETURNS jsonb LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner; answer text := 'done'; at pg_lsn; next bigint := _epoch + 1;
BEGIN
    IF _lock_ms > 0 THEN
        PERFORM segue.lock_fenced(_migration, '{}', _lock_ms);
    END IF;
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration FOR UPDATE;
    IF o.state = 'owner' AND o.epoch = next AND o.attempt = _attempt THEN
        answer := 'already_done';
    ELSIF o.state IS NULL OR o.epoch >= next OR o.state NOT IN ('follower', 'handed_over') THEN
        RETURN segue.answer(_migration, 'refused', 'this side cannot become the owner of that epoch');
    ELSE
        SELECT s.position INTO at FROM segue.stream s WHERE s.migration = _migration AND s.direction = _direction;
        IF at IS NULL OR at < _position THEN
            RETURN segue.answer(_migration, 'refused', format('the stream is at %s here, and the fence''s marker was applied at %s',
                                                              coalesce(at::text, 'no place'), _position));
        END IF;
        UPDATE segue.owner w SET state = 'owner', epoch = next, attempt = _attempt, deadline = NULL,
               opened_at = pg_current_wal_insert_lsn(), changed_at = clock_timestamp()
         WHERE w.migration = _migration;
    END IF;
    PERFORM segue.write_fence(_migration, next, _attempt, '-infinity');
    IF _lock_ms > 0 THEN
        PERFORM segue.set_triggers(_migration, false);
    END IF;
    RETURN segue.answer(_migration, answer);
END $$;

-- handed_over(n) or follower(n), n below the epoch of the owner to follow → follower(n), closed without end
CREATE OR REPLACE FUNCTION segue.become_follower(_migration text, _successor bigint, _tables text[], _lock_ms int)
RETURNS jsonb LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner; was_closed boolean;
BEGIN
    PERFORM segue.lock_fenced(_migration, _tables, _lock_ms);
    SELECT * INTO o FROM segue.owner w WHERE w.migration = _migration FOR UPDATE;
    IF o.state IS NULL OR o.state NOT IN ('follower', 'handed_over') OR o.epoch >= _successor THEN
        RETURN segue.answer(_migration, 'refused', 'this side has not handed its writes over to an owner of that epoch');
    END IF;
    SELECT o.state = 'follower' AND bool_and(c.enabled = 'O') INTO was_closed FROM segue.fence_carriers(_migration) c;
    UPDATE segue.owner w SET state = 'follower', deadline = NULL, changed_at = clock_timestamp()
     WHERE w.migration = _migration AND w.state <> 'follower';
    PERFORM segue.write_fence(_migration, o.epoch, o.attempt, 'infinity');
    PERFORM segue.set_triggers(_migration, true);
    RETURN segue.answer(_migration, CASE WHEN was_closed THEN 'already_done' ELSE 'done' END);
END $$;

-- for what is only done to a side before it opens: a request of a session that was given up may come later. The side does
-- not open until the end of the transaction.
CREATE OR REPLACE FUNCTION segue.before_it_opens(_migration text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE found_state text;
BEGIN
    SELECT o.state INTO found_state FROM segue.owner o WHERE o.migration = _migration FOR SHARE;
    IF found_state IN ('owner', 'fenced') THEN
        RAISE EXCEPTION 'segue: this side of migration % owns the writes by now', _migration USING ERRCODE = '55000';
    END IF;
END $$;

-- puts the fence of one table of an owner to rest, where that was not done when it was lifted
CREATE OR REPLACE FUNCTION segue.rest(_migration text, _relation oid, _epoch bigint, _attempt bigint)
RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE carrier record;
BEGIN
    SELECT * INTO carrier FROM segue.fence_carrier(_migration, _relation) c WHERE c.enabled <> 'D';
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    IF segue.locked_name(_relation, 'SHARE ROW EXCLUSIVE') IS DISTINCT FROM carrier.sql_name THEN
        RAISE EXCEPTION 'segue: % was renamed just now', carrier.sql_name USING ERRCODE = '55P03';
    END IF;
    -- under the table's lock no fence can begin
    IF NOT EXISTS (SELECT FROM segue.owner o WHERE o.migration = _migration AND o.state = 'owner' AND o.epoch = _epoch
                      AND o.attempt = _attempt) THEN
        RETURN false;
    END IF;
    EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', carrier.sql_name, carrier.trigger_name);
    RETURN true;
END $$;

-- the ownership row and the function of a fence, where they are not there yet
CREATE OR REPLACE FUNCTION segue.make_fence(_migration text, _state text, _epoch bigint, _elsewhere text)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE o segue.owner;
BEGIN
    INSERT INTO segue.owner AS w (migration, state, epoch, elsewhere) VALUES (_migration, _state, _epoch, _elsewhere)
        ON CONFLICT (migration) DO UPDATE SET elsewhere = excluded.elsewhere RETURNING * INTO o;
    EXECUTE format('CREATE SEQUENCE IF NOT EXISTS segue.%I', 'refused_' || _migration);
    EXECUTE format('CREATE SEQUENCE IF NOT EXISTS segue.%I', 'refused_at_' || _migration);
    IF to_regprocedure(format('segue.%I()', 'fence_' || _migration)) IS NULL THEN
        PERFORM segue.write_fence(_migration, o.epoch, o.attempt,
            CASE WHEN o.state = 'follower' THEN 'infinity'::timestamptz ELSE '-infinity' END);
    END IF;
END $$;

-- closes a side for good: whatever its row says, or is gone, its tables take no writes, and tell why
CREATE OR REPLACE FUNCTION segue.retire_fence(_migration text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $retire$
DECLARE elsewhere text;
BEGIN
    SELECT o.elsewhere INTO elsewhere FROM segue.owner o WHERE o.migration = _migration;
    EXECUTE format('CREATE OR REPLACE FUNCTION segue.%I() RETURNS trigger LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        SET search_path = pg_catalog AS %L', 'fence_' || _migration, format($body$
BEGIN
    RAISE EXCEPTION 'segue: migration %% is completed, and %%.%% here is a copy that nobody follows',
            %1$L, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = '25006', HINT = %2$L, SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, CONSTRAINT = %3$L;
END $body$, _migration, 'The owner of migration ' || _migration || ' is elsewhere for good: write to ' ||
        coalesce(elsewhere, 'the migration''s target') || '.', 'segue:' || _migration));
END $retire$;

-- locks one table, and proves under the lock that its name is still its own; NULL: it is gone
CREATE OR REPLACE FUNCTION segue.locked_name(_relation oid, _mode text)
RETURNS text LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE sql_name text;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname) INTO sql_name
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = _relation;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    EXECUTE format('LOCK TABLE ONLY %s IN %s MODE', sql_name, _mode);
    IF to_regclass(sql_name) IS DISTINCT FROM _relation THEN
        RAISE EXCEPTION 'segue: % was renamed just now', sql_name USING ERRCODE = '55P03';
    END IF;
    RETURN sql_name;
END $$;

-- gives one table its trigger: at rest where this side owns the writes, closed where it does not
CREATE OR REPLACE FUNCTION segue.add_fence(_migration text, _relation oid)
RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE sql_name text;
BEGIN
    sql_name := segue.locked_name(_relation, 'SHARE ROW EXCLUSIVE');
    IF sql_name IS NULL OR EXISTS (SELECT FROM segue.fence_carrier(_migration, _relation)) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT
        EXECUTE FUNCTION segue.%I()', 'segue_fence_' || _migration, sql_name, 'fence_' || _migration);
    -- under the table's lock: a fence that does not know this table yet refuses to go without it
    IF (SELECT o.state FROM segue.owner o WHERE o.migration = _migration) = 'owner' THEN
        EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', sql_name, 'segue_fence_' || _migration);
    END IF;
    RETURN true;
END $$;

-- what a table's storage parameters say of autovacuum; NULL: nothing
CREATE OR REPLACE FUNCTION segue.autovacuum_of(_relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT split_part(o, '=', 2) FROM pg_class c, unnest(c.reloptions) o
     WHERE c.oid = _relation AND split_part(o, '=', 1) = 'autovacuum_enabled'
$$;

CREATE OR REPLACE FUNCTION segue.autovacuum_off(_migration text, _relation oid)
RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE c pg_class; name text;
BEGIN
    SELECT k.* INTO c FROM pg_class k WHERE k.oid = _relation;
    IF NOT FOUND OR EXISTS (SELECT FROM segue.autovacuum a WHERE a.migration = _migration AND a.relation = _relation) THEN
        RETURN false;
    END IF;
    name := segue.locked_name(_relation, 'SHARE UPDATE EXCLUSIVE');
    IF name IS NULL THEN
        RETURN false;
    END IF;
    INSERT INTO segue.autovacuum (migration, relation, in_main, in_toast)
        VALUES (_migration, _relation, segue.autovacuum_of(_relation), segue.autovacuum_of(c.reltoastrelid));
    EXECUTE format('ALTER TABLE ONLY %s SET (autovacuum_enabled = off%s)', name,
        CASE WHEN c.reltoastrelid <> 0 THEN ', toast.autovacuum_enabled = off' END);
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION segue.autovacuum_back(_migration text, _relation oid)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE was segue.autovacuum; changes text;
BEGIN
    DELETE FROM segue.autovacuum a WHERE a.migration = _migration AND a.relation = _relation RETURNING * INTO was;
    IF was.relation IS NULL THEN
        RETURN;
    END IF;
    SELECT string_agg(
               CASE WHEN p.value IS NULL THEN format('RESET (%s)', p.parameter)
                    ELSE format('SET (%s = %L)', p.parameter, p.value) END, ', ')
      INTO changes
      FROM pg_class c,
           LATERAL (VALUES ('autovacuum_enabled', c.oid, was.in_main),
                           ('toast.autovacuum_enabled', c.reltoastrelid, was.in_toast)) p(parameter, relation, value)
     WHERE c.oid = _relation AND segue.autovacuum_of(p.relation) = 'off';
    IF changes IS NOT NULL THEN
        -- the guard against DDL has nothing to compare
        PERFORM set_config('segue.migration', _migration, true);
        EXECUTE format('ALTER TABLE ONLY %s ', segue.locked_name(_relation, 'SHARE UPDATE EXCLUSIVE')) || changes;
    END IF;
END $$;
"#;
