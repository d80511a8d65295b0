-- What a person does with psql. Its output is the same whichever way it goes; nothing in it changes from run to run.
\set VERBOSITY verbose
\set SHOW_CONTEXT always
DROP TABLE IF EXISTS psql_t;
CREATE TABLE psql_t (id serial PRIMARY KEY, name text NOT NULL UNIQUE, at date DEFAULT '2024-01-01');
COMMENT ON TABLE psql_t IS 'a table';
\copy psql_t (name) from stdin
ann
bob
cäsar
\.
\d+ psql_t
\dt psql_t
\di psql_t*
\df pg_catalog.abs
\l postgres
\copy (SELECT * FROM psql_t ORDER BY id) to stdout with csv header
COPY psql_t (name) FROM STDIN;
dora
\.
COPY psql_t TO STDOUT;
-- an error with its position, one in a function, one in the second of two statements
SELECT id, nonsense FROM psql_t;
SELECT * FROM psql_t WHERE name = 'x' AND;
\errverbose
DO $$ BEGIN PERFORM 1; PERFORM 1/0; END $$;
SELECT 1 AS before \; SELECT 1/0 \; SELECT 2 AS behind;
INSERT INTO psql_t (name) VALUES ('ann');
COPY psql_t (id) FROM STDIN;
not a number
\.
-- results into variables, as statements, and as a table
SELECT count(*) AS n, max(name) AS last FROM psql_t \gset psql_
\echo :psql_n :psql_last
SELECT format('SELECT %L AS made', name) FROM psql_t ORDER BY id LIMIT 2 \gexec
SELECT name, at, id FROM psql_t ORDER BY id \crosstabview name at id
SELECT name FROM psql_t ORDER BY id \gx
SELECT $1 AS a \gdesc
SELECT 1 AS a, 'x'::text AS b \gdesc
-- rows fetched in parts, by a cursor of psql's own
\set FETCH_COUNT 7
SELECT i, repeat('y', i) FROM generate_series(1, 30) i;
\unset FETCH_COUNT
-- an error within a transaction does not end it, if psql is told so
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO psql_t (name) VALUES ('eve');
INSERT INTO psql_t (name) VALUES ('eve');
SELECT count(*) FROM psql_t;
ROLLBACK;
\set ON_ERROR_ROLLBACK off
BEGIN;
SELECT 1/0;
SELECT 1;
COMMIT;
-- what is the session's own
PREPARE psql_p (int) AS SELECT name FROM psql_t WHERE id = $1;
EXECUTE psql_p (2);
SET search_path = pg_catalog;
SHOW search_path;
RESET search_path;
SET LOCAL work_mem = '1MB';
CREATE TEMP TABLE psql_temp AS SELECT 7 AS i;
SELECT * FROM psql_temp;
DECLARE psql_c CURSOR WITH HOLD FOR SELECT name FROM psql_t ORDER BY id;
FETCH 2 FROM psql_c;
FETCH 2 FROM psql_c;
LISTEN psql_news;
NOTIFY psql_news;
\encoding LATIN1
SELECT octet_length(convert_to(name, 'LATIN1')) FROM psql_t WHERE id = 3;
\encoding UTF8
\set AUTOCOMMIT off
DELETE FROM psql_t;
ROLLBACK;
\set AUTOCOMMIT on
SELECT name FROM psql_t ORDER BY id;
\c -
SELECT to_regclass('psql_temp');
DROP TABLE psql_t;
